"""In words: what is wrong with a generator, if anything, what to turn, and what is right."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FEW = 200  # samples, below which intervals hide all but the grossest faults
MOST_FAULTS = 4
MOST_NAMED = 10  # classes
CLEAR = 0.85  # of the other's value, that counts as clearly less
FARTHER = 1.25  # times the other's distance, that counts as clearly more
COPIES = 0.01  # share of copies above chance
MISLABELLED = 0.05  # share of wrong labels above the other's
BLUR = 1.1  # times the data's Vendi score


@dataclass(frozen=True)
class Finding:
    """One fault: what is seen, and what to turn in the training of a one-step student."""

    says: str
    hint: str


@dataclass(frozen=True)
class Case:
    """One row of a report beside the row it should be like: the teacher's, or real data's."""

    report: Mapping[str, Any]
    name: str
    other: str

    def value(self, metric: str, row: str | None = None) -> Any:
        """The number, or the list of classes, of this row or of another; None where there is none."""
        return (self.report.get(row or self.name) or {}).get(metric)

    def interval(self, metric: str, row: str | None = None) -> tuple[float, float]:
        """Low and high end of its interval; the number itself, twice, where it has none."""
        value = self.value(metric, row)
        return tuple((self.value("intervals", row) or {}).get(metric, (value, value)))

    def has(self, metric: str) -> bool:
        """Whether this row and the other have the number."""
        return self.value(metric) is not None and self.value(metric, self.other) is not None

    def falls_short(self, metric: str) -> bool:
        """Whether the number is below the alarm's band, or clearly below the other row's."""
        if self.value(metric) is None:
            return False
        if self._edge(metric, 0, -math.inf) > self.value(metric):
            return True
        return self.has(metric) and self.below(metric, CLEAR * self.value(metric, self.other))

    def exceeds_band(self, metric: str) -> bool:
        """Whether the number is above the alarm's band."""
        return self.value(metric) is not None and self.value(metric) > self._edge(metric, 1, math.inf)

    def below(self, metric: str, least: float) -> bool:
        """Whether the number is below `least`, and its interval below the other row's."""
        return self.value(metric) < least and self.interval(metric)[1] < self.interval(metric, self.other)[0]

    def above(self, metric: str, most: float) -> bool:
        """Whether the number is above `most`, and its interval above the other row's."""
        return self.value(metric) > most and self.interval(metric)[0] > self.interval(metric, self.other)[1]

    def others(self, metric: str) -> str:
        """The other row's number in words."""
        return f"{OWNERS[self.other]} {number(self.value(metric, self.other))}"

    def better(self, metric: str) -> str:
        """In words the number that this one is clearly below: the other row's, or real data's."""
        clear = self.has(metric) and self.value(metric) < CLEAR * self.value(metric, self.other)
        return self.others(metric) if clear else f"{OWNERS['floor']} {number(self.value(metric, 'floor'))}"

    def _edge(self, metric: str, side: int, none: float) -> float:
        edge = self.report.get("bands", {}).get(metric, (None, None))[side]
        return none if edge is None else edge


OWNERS = {"teacher": "the teacher's", "floor": "real data's"}
COVERS = "turn to ForwardKL or JensenShannon, or widen noise_levels"
RIGHT = (
    ("precision", "precision", "precision"),
    ("recall", "recall", "recall"),
    ("labels", "accuracy", "label accuracy"),
)
QUALITY = "train longer, let the fake score learn faster than the student, or raise adversarial_weight"


def verdict(report: Mapping[str, Any]) -> str:
    """Return a paragraph on the student's row of a report: at most four faults, the worst first, then what is right.

    A number counts as wrong when it is outside the collapse alarm's band (`report["bands"]`), or both clearly and by
    more than the intervals worse than the teacher's, or real data's where there is no teacher. Hints are for one-step
    students; where the teacher has the same fault, they point there. Empty without a student and a floor.
    """
    if not (report.get("student") and report.get("floor")):
        return ""
    teacher = bool(report.get("teacher"))
    case = Case(report, "student", "teacher" if teacher else "floor")
    found = faults(case)
    of_teacher = faults(Case(report, "teacher", "floor")) if teacher else {}
    distills = report.get("student_evaluations", 1) == 1
    sentences = []
    for name, finding in list(found.items())[:MOST_FAULTS]:
        hint = "the teacher has the same fault, so look there first" if name in of_teacher else finding.hint
        sentences.append(f"{finding.says}; {hint}." if distills or name in of_teacher else f"{finding.says}.")
    if len(found) > MOST_FAULTS:
        sentences[-1] += f" {len(found) - MOST_FAULTS} lesser faults are in the table."
    start = "" if sentences else "Nothing is wrong that these numbers can see. "
    return start + " ".join([*sentences, *_right(case, found), *_few(report)])


def faults(case: Case) -> dict[str, Finding]:
    """Return what is wrong with a row, by the name of the fault, the worst first."""
    found = {name: finding for name, judge in JUDGES.items() if (finding := judge(case)) is not None}
    if found.keys() & {"missing", "recall"}:  # the same loss, seen once more
        found.pop("regions", None)
    if "learned_little" in found:
        found.pop("distance", None)
    return found


def number(value: float) -> str:
    """Two digits behind the point or three in all, without a zero before the point."""
    text = f"{value:.2f}" if 0.1 <= abs(value) < 1 else f"{value:.3g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _learned_little(case: Case) -> Finding | None:
    value, gaussian = case.value("frechet_distance"), case.value("frechet_distance", "class_gaussian")
    if value is None or gaussian is None or value < gaussian:
        return None
    simple, real = (case.interval("frechet_distance", row) for row in ("class_gaussian", "floor"))
    if simple[0] <= FARTHER * real[1]:
        return None  # data that is little more than such Gaussians
    return Finding(
        f"Its distance {number(value)} is no better than that of one Gaussian per class, {number(gaussian)}: it has "
        "learned little",
        "train longer, and look at the losses first",
    )


def _missing(case: Case) -> Finding | None:
    missing, rare = (_not_in_real(case, f"{kind}_modes") for kind in ("missing", "rare"))
    total: int = case.report.get("judged_modes", 0)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        says = f"It makes only {total - len(missing)} of {total} classes: {_listed(missing)} {verb} missing"
        return Finding(f"{says}, and too few of {_listed(rare)}" if rare else says, COVERS)
    if rare:
        verb = "is" if len(rare) == 1 else "are"
        return Finding(f"{len(rare)} of {total} classes {verb} far too rare: {_listed(rare)}", COVERS)
    if not case.falls_short("mode_coverage"):
        return None
    share = 100 * (1 - case.value("mode_coverage"))
    return Finding(f"{share:.0f}% of the classes have less than a quarter of the samples they should have", COVERS)


def _not_in_real(case: Case, kind: str) -> list[int]:
    return [mode for mode in case.value(kind) or [] if mode not in (case.value(kind, "floor") or [])]


def _listed(modes: Sequence[int]) -> str:
    named = [str(mode) for mode in modes[:MOST_NAMED]] + ["others"] * (len(modes) > MOST_NAMED)
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _recall(case: Case) -> Finding | None:
    if not case.falls_short("recall"):
        return None
    says = f"Recall {number(case.value('recall'))} is far below {case.better('recall')}"
    if case.falls_short("precision"):
        return Finding(f"{says}: it does not reach much of the data", COVERS)
    precise = number(case.value("precision"))
    says += f" while precision is {precise}: it is sharp but covers little, which is mode dropping"
    return Finding(says, COVERS)


def _variety(case: Case) -> Finding | None:
    if not case.falls_short("vendi_ratio"):
        return None
    ratio = number(case.value("vendi_ratio"))
    return Finding(f"Its samples are less varied than real ones: the Vendi ratio is {ratio} in place of 1", COVERS)


def _crowding(case: Case) -> Finding | None:
    if not case.exceeds_band("anchored_tid"):
        return None
    times = case.value("count_ratio")
    return Finding(f"Its samples crowd together: each has {number(times)} times the neighbours of a real one", COVERS)


def _regions(case: Case) -> Finding | None:
    if not case.falls_short("local_coverage"):
        return None
    share = 100 * (1 - case.value("local_coverage"))
    return Finding(f"It hardly reaches {share:.0f}% of the real data", COVERS)


def _copies(case: Case) -> Finding | None:
    share, chance = case.value("memorized_fraction"), case.value("memorized_fraction", "held_out")
    if share is None or chance is None or case.interval("memorized_fraction")[0] <= chance + COPIES:
        return None
    return Finding(
        f"{100 * share:.0f}% of its samples are near copies of training images, where chance makes {100 * chance:.1f}%",
        "train on more data, or stop earlier",
    )


def _labels(case: Case) -> Finding | None:
    if not case.has("accuracy") or not case.below("accuracy", case.value("accuracy", case.other) - MISLABELLED):
        return None
    return Finding(
        f"Labels are often wrong: accuracy {number(case.value('accuracy'))} against {case.others('accuracy')}",
        "train longer, or raise the guidance of the teacher",
    )


def _precision(case: Case) -> Finding | None:
    if not case.falls_short("precision"):
        return None
    says = f"Precision {number(case.value('precision'))} is far below {case.better('precision')}"
    return Finding(f"{says}: many samples are unlike any real one", QUALITY)


def _blur(case: Case) -> Finding | None:
    real = case.value("vendi_ratio", "floor")
    if real is None or case.value("vendi_ratio") is None or case.interval("vendi_ratio")[0] <= BLUR * real:
        return None
    return Finding(
        f"Its Vendi score {number(case.value('vendi'))} is above the data's {number(case.value('vendi', 'floor'))}: "
        "that is blur or noise, not diversity",
        QUALITY,
    )


def _distance(case: Case) -> Finding | None:
    real = case.interval("frechet_distance", "floor")[1]
    if not case.above("frechet_distance", FARTHER * max(case.value("frechet_distance", case.other), real)):
        return None
    return Finding(
        f"Its distance {number(case.value('frechet_distance'))} is far above {case.others('frechet_distance')} and the "
        f"floor {number(case.value('frechet_distance', 'floor'))}",
        "train longer",
    )


JUDGES: dict[str, Callable[[Case], Finding | None]] = {
    "learned_little": _learned_little,
    "missing": _missing,
    "recall": _recall,
    "variety": _variety,
    "crowding": _crowding,
    "regions": _regions,
    "copies": _copies,
    "labels": _labels,
    "precision": _precision,
    "blur": _blur,
    "distance": _distance,
}


def _right(case: Case, found: Mapping[str, Finding]) -> list[str]:
    """What a reader may rely on, as a sentence; none where nothing is left."""
    good = []
    value, floor = case.value("frechet_distance"), case.value("frechet_distance", "floor")
    if value <= case.interval("frechet_distance", "floor")[1]:
        good.append(f"distance {number(value)} (the floor is {number(floor)}: read it as equal)")
    elif value <= FARTHER * case.value("frechet_distance", case.other):
        good.append(f"distance {number(value)} ({case.others('frechet_distance')})")
    for name, metric, words in RIGHT:
        if name not in found and case.has(metric):
            good.append(f"{words} {number(case.value(metric))} ({case.others(metric)})")
    if not good:
        return []
    listed = good[0] if len(good) == 1 else f"{', '.join(good[:-1])} and {good[-1]}"
    return [f"What is right: {listed}."]


def _few(report: Mapping[str, Any]) -> list[str]:
    n = report.get("n")
    if n is None or n >= FEW:
        return []
    return [f"With {n} samples the intervals are wide and hide lesser faults: use a larger --n."]
