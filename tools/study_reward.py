"""Train a teacher with much noise and generate with none? Reward, gap, distance and diversity over the turns.

    python tools/study_reward.py --out runs/study_reward
    python tools/study_reward.py --out runs/study_reward --problem captions --turns 4 8 --samples 20

digits-teacher learns two rewards by Flow-GRPO and MixGRPO with five stochasticities, by DDPO and by DiffusionNFT, from
rollouts of 100 samples of 10 steps (batches of 10 classes, groups of 10, one update a rollout). The problem "captions"
is the teacher that `make text-quickstart` leaves in runs/text-quickstart, without guidance: batches are of 10 of 270
captions, and the second reward is the log-probability of an eight by their judge, as on digits. It is measured before,
half-way and at the end: by GDDIM with eta 0 at 5, 10 and 20 steps, and with the training eta (DiffusionNFT: 1.2) at 10.
The gap is the reward with the training eta less that with none, at 10 steps, from the same latents. Distance is the
mean squared difference of tuned and untuned denoiser, per entry, on training samples noised to each level of the grid.
Features are of another classifier than the reward's.

Writes one JSON file a run, which another run with the same --out does not compute again, and from all that are there
table.md: what each row earned, and differences of rows, paired by seed. Rewards "at equal distance" and "at equal
recall" are read off each run's own course by linear interpolation over the root of the distance and over recall, at the
smallest final distance, and the largest final recall, of a reward's runs of Flow-GRPO ("-": not reached).
All numbers are averages over seeds, with 95% intervals of Student's t over seeds; these are of training, the latents of
all measurements being the same.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from scipy.stats import t
from torch import Tensor

from fdistill.core.atomic_files import write_json
from fdistill.core.random import generator_for
from fdistill.data import CaptionedDigits, Digits, GenerativeDataModule
from fdistill.data.captioned_digits import PARTS
from fdistill.evaluation.reward_gap import Gap, GapProbe
from fdistill.io.load import load_model
from fdistill.models.condition import Condition, Conditioned
from fdistill.models.denoiser import Denoiser
from fdistill.objectives.image_rewards import Brightness
from fdistill.objectives.prompt_rewards import CaptionReward
from fdistill.objectives.reward_algorithms import DDPO, DiffusionNFT, FlowGRPO, MixGRPO, RewardAlgorithm
from fdistill.objectives.rewards import ClassifierReward, Reward
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import KarrasGrid
from fdistill.training import RewardTuningModule
from fdistill.training.judging import judged

GROUP, STEPS = 10, 10
TEXT = Path("runs/text-quickstart")
ETAS = (0.5, 0.8, 1.0, 1.2, 1.5)
WITHOUT = (5, 10, 20)  # steps of the samples without noise
LEARNING_RATE = 2e-4


class CaptionedEight(CaptionReward):
    """ln of the probability of an eight, whatever the caption asks for, by the judge of captioned digits."""

    def forward(self, x: Tensor, condition: Conditioned) -> Tensor:
        """[B] <= 0 of colour images [B, 3, 8, 8]; the condition is not read."""
        return self.features.classifier(x).split(PARTS, dim=1)[0].log_softmax(1)[:, 8]


class Problem(NamedTuple):
    """Who is tuned, on which conditions, between which noise levels, and towards what."""

    teacher: str
    data: Callable[..., GenerativeDataModule]
    ends: tuple[float, float]
    rewards: dict[str, Callable[[], Reward]]

    @property
    def grid(self) -> KarrasGrid:
        """Of the rollouts."""
        return KarrasGrid(STEPS, self.ends[1], self.ends[0])

    def model(self) -> GenerativeModel:
        """The teacher, without guidance."""
        return dataclasses.replace(load_model(self.teacher), guidance=1.0)


PROBLEMS = {
    "digits": Problem(
        "digits-teacher",
        Digits,
        (80.0, 0.02),
        {"brightness": Brightness, "eight": functools.partial(ClassifierReward, 8)},
    ),
    "captions": Problem(
        str(TEXT / "teacher"),
        functools.partial(CaptionedDigits, str(TEXT / "prompts")),
        (14.6, 0.03),
        {"brightness of captions": Brightness, "eight of captions": functools.partial(CaptionedEight, seed=1)},
    ),
}


class Cell(NamedTuple):
    """One run."""

    reward: str
    algorithm: str
    eta: float
    seed: int

    @property
    def row(self) -> tuple[str, str, float]:
        """What its seeds have in common."""
        return self[:3]

    def build(self) -> RewardAlgorithm:
        """The algorithm; DiffusionNFT has deterministic rollouts, and its eta is that of the samples it is read by."""
        if self.algorithm == "Flow-GRPO":
            return FlowGRPO(self.eta, GROUP, kl_weight=0.0)
        if self.algorithm == "DDPO":
            return DDPO(self.eta, GROUP)
        return MixGRPO(self.eta, every=2, group=GROUP) if self.algorithm == "MixGRPO" else DiffusionNFT(group=GROUP)


def cells(rewards: Iterable[str], seeds: int) -> list[Cell]:
    """All runs, those that answer most first."""
    first = [*(("Flow-GRPO", eta) for eta in ETAS), *((name, 1.2) for name in ("DiffusionNFT", "MixGRPO", "DDPO"))]
    others = [("MixGRPO", eta) for eta in ETAS if eta != 1.2]
    return [
        Cell(reward, *how, seed)
        for these in (first, others)
        for seed in range(seeds)
        for reward in rewards
        for how in these
    ]


class Study:
    """What the runs of a problem share: data, teacher, probe, and the teacher's own numbers."""

    def __init__(self, problem: Problem, seeds: int) -> None:
        self.problem, self.data, self.model = problem, problem.data(batch_size=10), problem.model()
        self.probe = GapProbe(self.data, problem.ends, seeds=seeds, seed=1)
        generator = generator_for(2)
        chosen = torch.randperm(len(self.data.train_samples), generator=generator)[:200]
        seen = self.data.train_samples.rows(chosen)
        self._noise, self._x, self._seen = torch.randn(seen.x.shape, generator=generator), seen.x, seen.condition
        self._rewards: dict[str, Reward] = {}

    def distance(self, denoiser: Denoiser) -> float:
        """See the head of this file."""
        total = 0.0
        for sigma in self.problem.grid.levels()[:-1].tolist():
            x, level = self._x + sigma * self._noise, torch.full((len(self._x),), sigma)
            ours, theirs = (network(x, level, self._seen) for network in (denoiser, self.model.denoiser))
            total += float((ours - theirs).square().mean()) / STEPS
        return total

    def reward(self, name: str) -> Reward:
        """The prepared reward; that of a run is another of the same seed, and so the same."""
        if name not in self._rewards:
            self._rewards[name] = self.problem.rewards[name]()
            self._rewards[name].prepare(self.data)
        return self._rewards[name]

    @functools.lru_cache  # noqa: B019 one study a process
    def untuned(self, reward: str, eta: float) -> dict[str, Any]:
        """Of the teacher."""
        return self.measure(self.model, reward, eta)

    def measure(self, model: Any, reward: str, eta: float) -> dict[str, Any]:
        """Every number of one state of a run."""

        def judge(pictures: Tensor, condition: Condition) -> Tensor:
            return judged(self.reward(reward), pictures, condition, None, torch.device("cpu"), 500)[0]

        looks = {f"{steps} steps": self.probe.look(model, judge, steps, 0.0) for steps in WITHOUT}
        looks["training eta"] = self.probe.look(model, judge, STEPS, eta)
        gap = Gap.of(looks["training eta"].scores[:, 0], looks[f"{STEPS} steps"].scores[:, 0])
        rows = {name: {"reward": float(look.scores.mean()), **look.values} for name, look in looks.items()}
        return {"gap": gap.mean, "gap_error": gap.error, "distance": self.distance(model.denoiser), **rows}


class Watch(L.Callback):
    """Measures the tuned teacher at some turns."""

    def __init__(self, study: Study, cell: Cell, turns: list[int]) -> None:
        self.study, self.cell, self.turns = study, cell, turns
        self.course = {0: study.untuned(cell.reward, cell.eta)}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        turn = trainer.global_step
        if turn in self.turns and turn not in self.course and isinstance(pl_module, RewardTuningModule):
            with torch.no_grad():
                self.course[turn] = self.study.measure(pl_module.generative_model(), self.cell.reward, self.cell.eta)


def run(study: Study, cell: Cell, turns: list[int]) -> dict[str, Any]:
    """Train one teacher and measure it on the way."""
    optimizer = functools.partial(torch.optim.AdamW, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    problem = study.problem
    reward = problem.rewards[cell.reward]()
    module = RewardTuningModule(problem.model(), reward, cell.build(), optimizer, problem.grid, seed=cell.seed)
    watch = Watch(study, cell, turns)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=turns[-1],
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=problem.data(batch_size=10, seed=cell.seed))
    return {**cell._asdict(), "course": {str(turn): found for turn, found in watch.course.items()}}


def at(course: list[tuple[float, float]], level: float) -> float | None:
    """The reward where a run's course (x, reward) first reaches x = level, by linear interpolation."""
    for (x0, y0), (x1, y1) in itertools.pairwise(course):
        if min(x0, x1) <= level <= max(x0, x1) and x0 != x1:
            return y0 + (y1 - y0) * (level - x0) / (x1 - x0)
    return None


def words(values: list[float | None]) -> str:
    """Mean and half of its 95% interval by Student's t; how many have a value, where some have none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    half = 0.0
    if len(known) > 1:
        half = float(t.ppf(0.975, len(known) - 1)) * statistics.stdev(known) / len(known) ** 0.5
    error = f" ± {half:.2g}" if half > 0 else ""
    return f"{statistics.fmean(known):.3g}{error}" + (f" ({len(known)}/{len(values)})" if None in values else "")


class Row:
    """What a run ended with, by column; None where it has no value."""

    def __init__(self, course: dict[str, Any], distance: float, recall: float) -> None:
        """Args:
        course: states by turn.
        distance: at which rewards are compared.
        recall: at which they are, too.
        """
        states, end = list(course.values()), list(course.values())[-1]
        self.values: dict[str, float | None] = {f"gap, turn {turn}": state["gap"] for turn, state in course.items()}
        self.values |= {name: end[name]["reward"] for name in (*_NAMES, "training eta")}
        self.values |= {"distance": end["distance"]} | {name: end["10 steps"][name] for name in _DIVERSITY}
        earned = [state["10 steps"]["reward"] for state in states]
        moved = [(state["distance"] ** 0.5, reward) for state, reward in zip(states, earned, strict=True)]
        kept = [(state["10 steps"]["recall"], reward) for state, reward in zip(states, earned, strict=True)]
        self.values |= {"at equal distance": at(moved, distance**0.5), "at equal recall": at(kept, recall)}

    def less(self, other: "Row") -> dict[str, float | None]:
        """The differences."""
        pairs = {name: (value, other.values[name]) for name, value in self.values.items()}
        return {name: None if a is None or b is None else a - b for name, (a, b) in pairs.items()}


_NAMES = [f"{steps} steps" for steps in WITHOUT]
_DIVERSITY = ("recall", "vendi_ratio", "condition_vendi")
_PAIRS = [  # whose difference is asked for
    *((("Flow-GRPO", eta), ("Flow-GRPO", 0.5)) for eta in ETAS[1:]),
    (("Flow-GRPO", 1.5), ("Flow-GRPO", 1.2)),
    *((("MixGRPO", eta), ("MixGRPO", 0.5)) for eta in ETAS[1:]),
    *(((name, 1.2), ("Flow-GRPO", 1.2)) for name in ("DDPO", "MixGRPO", "DiffusionNFT")),
]


def table(entries: list[dict[str, Any]]) -> str:
    """Of each reward: one row for each algorithm and eta, and differences of rows of the same seeds."""
    lines: list[str] = []
    for reward in (name for problem in PROBLEMS.values() for name in problem.rewards):
        mine = [entry for entry in entries if entry["reward"] == reward]
        ends = [list(entry["course"].values())[-1] for entry in mine if entry["algorithm"] == "Flow-GRPO"]
        if not ends:
            continue
        near, recall = min(end["distance"] for end in ends), max(end["10 steps"]["recall"] for end in ends)
        rows: dict[tuple[str, float], dict[int, Row]] = {}
        for entry in mine:
            rows.setdefault((entry["algorithm"], entry["eta"]), {})[entry["seed"]] = Row(entry["course"], near, recall)
        lines += [f"{reward}; equal distance {near:.4g}, equal recall {recall:.3f}", ""]
        lines += printed({row: [run.values for run in rows[row].values()] for row in sorted(rows)})
        pairs = [pair for pair in _PAIRS if all(row in rows for row in pair)]
        lines += printed({(one, other): _differences(rows[one], rows[other]) for one, other in pairs})
    return "\n".join(lines)


def _differences(one: dict[int, Row], other: dict[int, Row]) -> list[dict[str, float | None]]:
    return [one[seed].less(other[seed]) for seed in sorted(one.keys() & other.keys())]


def printed(rows: dict[Any, list[dict[str, float | None]]]) -> list[str]:
    """A table of the values of each row's runs; rows are of (algorithm, eta), or of two of them."""
    if not rows:
        return []
    heads = list(next(iter(rows.values()))[0])
    lines = ["| | seeds | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for row, runs in rows.items():
        names = row if isinstance(row[0], tuple) else [row]
        cells = [" less ".join(f"{algorithm} {eta:g}" for algorithm, eta in names), str(len(runs))]
        lines.append("| " + " | ".join(cells + [words([run[name] for run in runs]) for name in heads]) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study_reward"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, nargs="+", default=[12, 24], help="at which to measure; ends at the last")
    parser.add_argument("--samples", type=int, default=50, help="of each class, measured")
    parser.add_argument("--only", type=int, help="runs, the first ones")
    parser.add_argument("--problem", choices=PROBLEMS, default="digits")
    parser.add_argument(
        "--cell", nargs=4, action="append", metavar=("REWARD", "ALGORITHM", "ETA", "SEED"), help="these runs alone"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    problem = PROBLEMS[options.problem]
    study = Study(problem, options.samples)
    asked = [Cell(reward, how, float(eta), int(seed)) for reward, how, eta, seed in options.cell or ()]
    for cell in asked or cells(problem.rewards, options.seeds)[: options.only]:
        file = options.out / f"{cell.reward.replace(' ', '-')}-{cell.algorithm}-{cell.eta:g}-{cell.seed}.json"
        if not file.exists():
            write_json(file, run(study, cell, options.turns))
            print(file.name, flush=True)
    entries = [json.loads(file.read_text()) for file in sorted(options.out.glob("*.json"))]
    (options.out / "table.md").write_text(table(entries))


if __name__ == "__main__":
    main()
