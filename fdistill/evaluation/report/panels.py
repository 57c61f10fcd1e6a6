"""The dashboard as code: which logged names share a panel, and what one sees there when all is well.

`fdistill dashboard` draws these panels from run folders, or builds them as a workspace of Weights & Biases.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

COLLAPSE = "Collapse"  # the group below which the alarm's reasons stand
STUDENT = "metric/"
REFERENCES = {
    "teacher": "metric_teacher/",
    "floor": "metric_floor/",
}  # the same numbers for the teacher, and for real data


@dataclass(frozen=True)
class Panel:
    """One set of axes over the training step.

    Attributes:
        title: above it.
        names: logged names drawn in it; a * at the end stands for every ending.
        well: what one sees when all is well.
    """

    title: str
    names: tuple[str, ...]
    well: str

    def holds(self, name: str) -> bool:
        """Whether the number of this name is drawn here."""
        return re.fullmatch(self.pattern, name) is not None

    @property
    def pattern(self) -> str:
        """The names as a regular expression."""
        return "|".join(re.escape(name).replace(r"\*", ".*") for name in self.names)


@dataclass(frozen=True)
class Group:
    """Panels that answer one question."""

    title: str
    panels: tuple[Panel, ...]


PICTURES = Panel(
    "Samples and diagnosis",
    ("samples/grid", "diagnosis/ratio", "diagnosis/see_saw"),
    "Student, teacher and nearest training image agree in class and sharpness. Columns that look alike are a collapse; "
    "a student's image that equals its nearest training image is memorised.",
)

GROUPS = (
    Group(
        "Losses",
        (
            Panel(
                "Student",
                ("loss/student",),
                "Rises from 0 where student and fake score start as the teacher, falls, then stays level. On the KL "
                "side it is half the squared matching direction: how far apart the two scores are, not how good the "
                "pictures are. SiD, SIM and Uni-Instruct descend a number that is often below 0.",
            ),
            Panel(
                "Fake score",
                ("loss/fake_score",),
                "Settles early and stays level: the fake score follows the student. A steady climb says that it does "
                "not; raise its learning rate.",
            ),
            Panel(
                "Discriminator",
                ("loss/discriminator",),
                "Close to 2 ln 2 = 1.386, where real and generated samples cannot be told apart. Near 0 the "
                "discriminator has won, and teaches little.",
            ),
            Panel(
                "Adversarial",
                ("loss/adversarial",),
                "Around ln 2 = .693, where samples pass as real. It may rise while the samples improve, because the "
                "discriminator improves too: judge by the metrics.",
            ),
            Panel(
                "Regression, reward, Monge gap, penalty",
                ("loss/regression", "loss/reward", "loss/monge", "loss/r1"),
                "Regression to teacher pairs falls and levels off; loss/reward is minus the reward and falls, and so "
                "does the Monge gap; the discriminator's penalty stays small beside its loss.",
            ),
            Panel(
                "Teacher training",
                ("loss/teacher", "validation/loss"),
                "Both fall, the training loss noisily. A held-out loss that turns upwards says that the teacher "
                "memorises.",
            ),
            Panel(
                "Gradient norms",
                ("grad_norm/*",),
                "Level, within a factor of a few. A drift upwards comes before a NaN: lower the learning rate.",
            ),
            Panel(
                "Gradients at the generated image",
                (
                    "image_gradient/matching",
                    "image_gradient/adversarial",
                    "image_gradient/regression",
                    "image_gradient/reward",
                    "image_gradient/monge",
                ),
                "Level, and of one order of magnitude.",
            ),
            Panel(
                "Adversarial over matching gradient",
                ("image_gradient/balance",),
                "Level. Above 1 the discriminator makes most of the update: 4 to 6 in the quick start at weight .3, "
                "which gains recall and leaves the distance as it is. Lower adversarial_weight where it climbs, or "
                "where the metrics are worse than without the term.",
            ),
        ),
    ),
    Group(
        "Ratio",
        (
            Panel("Log ratio", ("ratio/log_mean",), "Near 0, where the centring of the noise bins keeps it."),
            Panel(
                "Clipped ratios",
                ("ratio/clipped_fraction",),
                "Near 0. A large share says that teacher and student hardly overlap, or that the discriminator is too "
                "sure.",
            ),
            Panel(
                "Effective sample share",
                ("ratio/ess",),
                "Near 1, where the weights hardly differ. Near 0 a few samples make the whole update.",
            ),
            Panel(
                "Weights h(r)",
                ("weight/*",),
                "Mean and maximum run in parallel. A maximum that jumps far above the mean comes from single samples: "
                "take a divergence with a bounded weight.",
            ),
            Panel(
                "Log ratio by noise level",
                ("ratio_bin/log_mean/*",),
                "Every noise bin near 0. One that leaves is a noise level at which student and teacher differ.",
            ),
            Panel(
                "Weight by noise level",
                ("weight_bin/mean/*",),
                "Of one order of magnitude. A bin that rises far above the others makes the update alone.",
            ),
            Panel(
                "Effective share by noise level",
                ("weight_bin/ess/*",),
                "Near 1 at high noise; lower, but not near 0, at low noise.",
            ),
            Panel(
                "See-saw of the teacher",
                ("see_saw/excess/*",),
                "At or below 0: at no noise level is the teacher worse than the best linear denoiser.",
            ),
            Panel("Noise levels of the see-saw", ("see_saw/sigma/*",), "Constant: the sigma of each of its bins."),
        ),
    ),
    Group(
        "Quality and diversity",
        (
            Panel(
                "Fréchet distance",
                ("metric/frechet_distance",),
                "Falls to the teacher's line. Differences below the floor, which real samples score, are chance.",
            ),
            Panel(
                "Kernel distance",
                ("metric/kernel_distance",),
                "Falls to the teacher's line. Unbiased, so that it may dip below 0.",
            ),
            Panel(
                "Fréchet distance on pixels",
                ("metric/pixel_frechet_distance", "validation/pixel_frechet_distance"),
                "Falls, then stays level. A rise at the end is overfitting: keep the best checkpoint.",
            ),
            Panel(
                "Precision and recall",
                ("metric/precision", "metric/recall"),
                "Precision is quality, recall is diversity: both reach the teacher's. Recall that falls while "
                "precision rises is mode dropping.",
            ),
            Panel(
                "Density and coverage",
                ("metric/density", "metric/coverage"),
                "Both near the floor. Density above it and coverage below: samples crowd where real ones are dense.",
            ),
            Panel(
                "Vendi score",
                ("metric/vendi_score",),
                "Rises to the floor: as many effectively different samples as real data has. Above it is blur, not "
                "diversity.",
            ),
            Panel("Vendi ratio", ("metric/vendi_ratio",), "Reaches 1. Below is collapse, above is blur."),
            Panel(
                "Tail index difference",
                ("metric/tid", "metric/anchored_tid"),
                "The anchored one falls to the floor: it rises when samples crowd together more than real ones do. The "
                "other need not.",
            ),
            Panel(
                "Neighbours",
                ("metric/count_ratio", "metric/neighbour_distance_ratio"),
                "Near 1: samples have as many neighbours, and as near, as real ones.",
            ),
            Panel(
                "Modes and classes",
                ("metric/mode_coverage", "metric/mode_entropy", "metric/class_entropy", "metric/mode_precision"),
                "At 1: every mode or class is made, about equally often, and little lies between them.",
            ),
            Panel(
                "Number of modes",
                ("metric/modes_covered", "metric/effective_modes"),
                "As many as the data has.",
            ),
            Panel(
                "Weights of the modes",
                ("metric/mode_weight_kl",),
                "Falls to about 0, where every mode has the share that it has in the data.",
            ),
            Panel(
                "Local coverage",
                ("metric/local_coverage",),
                "Rises to the floor: real samples in every region have generated ones among their neighbours.",
            ),
            Panel(
                "Distance to the teacher's sample",
                ("metric/paired_distance",),
                "Falls where the student learns its teacher's map; it may stay high where only the distributions "
                "agree.",
            ),
            Panel(
                "Monge gap",
                ("metric/monge_gap",),
                "Level, above 0. Small where latents go the shortest ways to samples; 0 in many dimensions, and of a "
                "student that has collapsed: no score of quality.",
            ),
            Panel(
                "Label accuracy",
                ("metric/accuracy",),
                "Near the teacher's. No proof of quality: a student collapsed within its classes scores it too.",
            ),
            Panel(
                "Memorised share",
                ("metric/memorized_fraction",),
                "At the floor, which held-out samples score. Above it the student copies training images.",
            ),
        ),
    ),
    Group(
        COLLAPSE,
        (
            Panel("Alarm", ("collapse/alarm",), "0 throughout. 1 is a collapse, and the reason stands below."),
            Panel(
                "Margins",
                ("collapse/margin/*",),
                "Above 0, inside the band that halves of the real data span. A student that still learns may start "
                "below.",
            ),
        ),
    ),
    Group(
        "Speed",
        (
            Panel("Milliseconds a turn", ("perf/step_ms",), "Level, but for turns that wait for a measurement."),
            Panel("Images a second", ("perf/images_per_second",), "Level. A slow decline is a leak or a busy machine."),
            Panel(
                "Share of time in metrics",
                ("perf/metrics_share",),
                "Falls to a few per cent. Where it stays above a tenth, measure less often or fewer samples.",
            ),
            Panel("Peak memory, GiB", ("perf/peak_memory_gib",), "Level. A rise is a leak."),
            Panel("Use of the hardware", ("perf/mfu",), "Level."),
        ),
    ),
)


def beside(name: str) -> dict[str, str]:
    """Return what is drawn beside a number: "teacher" and "floor" to the names of the same number there."""
    if not name.startswith(STUDENT):
        return {}
    return {source: prefix + name.removeprefix(STUDENT) for source, prefix in REFERENCES.items()}


def all_groups(names: Iterable[str]) -> tuple[Group, ...]:
    """Return GROUPS, and a last group with a panel for every one of the logged `names` that they leave out."""
    held = {name for name in names for group in GROUPS for panel in group.panels if panel.holds(name)}
    held |= {reference for name in names for reference in beside(name).values()}
    rest = sorted(set(names) - held)
    return (*GROUPS, Group("Everything else", tuple(Panel(name, (name,), "") for name in rest)))
