"""The tables of docs/objectives.md, read from the code: objectives, divergences, published recipes.

    python tools/objectives_table.py            # writes them into docs/objectives.md
    python tools/objectives_table.py --check    # fails where the document is not what this would write

What is minimised and the formulas of the weights are words of this file: a class without them stops it, and each
formula is compared with the code.
"""

import argparse
import importlib
import inspect
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
import yaml
from torch import Tensor

from fdistill import objectives
from fdistill.objectives import DiffInstruct, Objective
from fdistill.objectives.rewards import Reward, TargetReward
from fdistill.theory import divergences
from fdistill.theory.divergences import (
    Bregman,
    BregmanLogistic,
    BregmanPower,
    ChangingDivergence,
    FDivergence,
    JensenShannon,
)
from fdistill.theory.divergences import ReverseKL as Reverse
from fdistill.theory.schedules import Schedule

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "objectives.md"
RECIPES = ROOT / "configs" / "recipes"

MINIMISED = {  # words between ` are mathematics, in the order of the table
    "FDistill": "`c sigma^2 E_q[f(r)] / mean(h)`, and `adversarial_weight` times the softened reverse KL",
    "DiffInstruct": "`c sigma^2 KL(q_t||p_t)`",
    "VSD": "`c sigma^2 KL(q_t||p_t)` with `c = sigma / (1 + sigma^2)`",
    "SDS": "`c sigma^2 E_q[-ln p_t]`, with the same `c`: `VSD` without the entropy of the student",
    "DMD": "`c sigma^2 KL(q_t||p_t)`, and `regression_weight` times the mean squared error to what the teacher makes "
    "of the same latents",
    "DMD2": "`c sigma^2 KL(q_t||p_t)`, and `adversarial_weight` times the softened reverse KL",
    "ScoreOfMixture": "`c sigma^2` times the mean of the skewed Jensen-Shannon divergences of skews in `[low, high]`, "
    "over `mean(h)`, and `adversarial_weight` times the softened reverse KL",
    "BregmanMatching": "`c sigma^2 E_p[h(rho) - h(1) - h'(1) (rho - 1)] / mean(rho h''(rho))`, `rho = q_t/p_t`, and "
    "`adversarial_weight` times the softened reverse KL",
    "SiD": "`c sigma^4 ((1 - alpha) F + (alpha - 1/2) F_sg)`",
    "Fisher": "`c sigma^4 F / 2`",
    "SiDA": "as `SiD`, and `adversarial_weight` times the softened reverse KL",
    "SIM": "`c E_sg sqrt(|D_p - D_q|^2 / N + width^2)` with its argument `c` for the width",
    "UniInstruct": "`c sigma^4 E_q[h(r) |s_p - s_q|^2] / mean(h)` if `coefficient` is `exact`; otherwise the noisiest "
    "factor of its gradient is bounded",
    "Adversarial": "`weight` times the softened reverse KL",
    "RewardAugmented": "what `objective` minimises, less `beta E[reward(x)]`",
    "TiltedTeacher": "what `objective` minimises, with `p_t exp(beta reward(D_p))` in place of `p_t`",
    "MongeRegularised": "what `objective` minimises, and `weight` times the Monge gap of latents and samples",
    "DiversityPreserving": "what `objective` minimises, by all steps but the first; by that, `weight` times the mean "
    "squared error to the teacher's trajectory",
    "WarmStarted": "what `first` minimises for so many `updates`, from then on what `objective` minimises",
}
WEIGHTS = {  # of Python, with the arguments of the divergence as names
    "ReverseKL": "1",
    "SoftenedReverseKL": "1 / (1 + r)",
    "NeymanChiSquared": "2 / r",
    "JensenShannon": "r / (1 + r)",
    "SquaredHellinger": "sqrt(r) / 4",
    "ForwardKL": "r",
    "PearsonChiSquared": "2 * r**2",
    "Jeffreys": "1 + r",
    "AlphaDivergence": "r**alpha",
    "SkewedJensenShannon": "r / (skew * r + 1 - skew)",
    "UniformlySkewedJensenShannon": "r / (r - 1) * log((1 + high * (r - 1)) / (1 + low * (r - 1))) / (high - low)",
    "BregmanPower": "r**-beta",
    "BregmanLogistic": "r / (1 + r)",
}
EXAMPLES = {
    FDivergence: JensenShannon(),
    Bregman: BregmanLogistic(),
    Objective: DiffInstruct(),
    Reward: TargetReward(0.0),
    int: 1000,
    float | Schedule: 0.1,
}
WITHOUT_RATIO = {FDivergence: Reverse(), Bregman: BregmanPower(0.0)}
PATTERNS: dict[str, Callable[[bool, bool], bool]] = {  # of an adversarial term, and of a weight that needs a ratio
    "yes": lambda adversarial, ratio: True,
    "no": lambda adversarial, ratio: False,
    "with `adversarial_weight`": lambda adversarial, ratio: adversarial,
    "unless reverse KL": lambda adversarial, ratio: ratio,
    "unless reverse KL without `adversarial_weight`": lambda adversarial, ratio: adversarial or ratio,
}
APART = 2.0  # between the two unit Gaussians whose weights are compared


class Behaviour(NamedTuple):
    """How a divergence treats modes, its weight scaled to 1 at r = 1; both may be infinite."""

    missed: float  # int_1^inf h/r^2 dr = f'(inf) - f'(1): a region of the teacher that the student never visits
    invented: float  # int_0^1 h/r dr = f(0) - f(1) + f'(1): a region of the student that the teacher does not know

    @property
    def word(self) -> str:
        """Mode seeking where only inventing is forbidden, covering where only missing is."""
        words = {(False, True): "seeking", (True, False): "covering", (True, True): "neither is allowed"}
        return words.get((math.isinf(self.missed), math.isinf(self.invented)), "between")


def public(room: Any, base: type) -> list[type]:
    """The concrete classes below `base` that a room exports, by name."""
    found = [getattr(room, name) for name in room.__all__]
    return [c for c in found if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)]


def in_order(words: dict[str, str], classes: list[type], name: str) -> list[type]:
    """The classes in the order of their words.

    Raises:
        ValueError: where a class has no words, or words have no class.
    """
    there = {cls.__name__: cls for cls in classes}
    if words.keys() != there.keys():
        missing, idle = sorted(there.keys() - words.keys()), sorted(words.keys() - there.keys())
        raise ValueError(
            f"{name} of tools/objectives_table.py tells of every class: missing {missing}, too many {idle}"
        )
    return [there[word] for word in words]


def example(cls: type, **given: Any) -> Any:
    """An instance with its defaults, and `EXAMPLES` for what has none."""
    hints = get_type_hints(cls.__init__)
    required = [p.name for p in parameters(cls) if p.default is p.empty]
    return cls(**{name: EXAMPLES[hints[name]] for name in required} | given)


def parameters(cls: type) -> list[inspect.Parameter]:
    return list(inspect.signature(cls).parameters.values())


def constructor(cls: type) -> str:
    told = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters(cls)]
    return f"`{cls.__name__}({', '.join(told)})`"


def papers(cls: type) -> str:
    """arXiv numbers of a class's docstring, else the first of its module's."""
    number = re.compile(r"arXiv (\d{4}\.\d{4,5})")
    module = importlib.import_module(cls.__module__)
    found = number.findall(cls.__doc__) or number.findall(module.__doc__)[:1]
    return ", ".join(f"[{n}](https://arxiv.org/abs/{n})" for n in found) or "none"


def needed(cls: type, what: str) -> str:
    """When an objective needs something, in words, by asking it with and without adversarial term and ratio."""
    hints = get_type_hints(cls.__init__)
    inner = [name for name, hint in hints.items() if hint is Objective]
    if inner:
        return f"as {' and '.join(f'`{name}`' for name in inner)}"
    answers = {}
    for adversarial, ratio in itertools.product((True, False), repeat=2):
        given = {"adversarial_weight": float(adversarial)} if "adversarial_weight" in hints else {}
        if hints.get("divergence") in WITHOUT_RATIO and not ratio:
            given["divergence"] = WITHOUT_RATIO[hints["divergence"]]
        answers[adversarial, ratio] = getattr(example(cls, **given).needs, what)
    if isinstance(answers[True, True], str):
        return {"value": "value", "gradient": "input gradient", "nothing": "no"}[answers[True, True]]
    return next(words for words, holds in PATTERNS.items() if all(holds(*k) == v for k, v in answers.items()))


def objective_tables() -> dict[str, str]:
    classes = in_order(MINIMISED, public(objectives, Objective), "MINIMISED")
    columns = ("teacher", "fake_score", "ratio", "logit", "real", "pairs")
    minimised = [[f"`{c.__name__}`", papers(c), MINIMISED[c.__name__]] for c in classes]
    needs = [[constructor(c), *(needed(c, what) for what in columns)] for c in classes]
    heads = ("built as", "teacher", "fake score", "density ratio", "logit", "real data", "pairs")
    return {
        "minimised": table(("objective", "source", "descends the gradient of"), minimised),
        "needs": table(heads, needs),
    }


def checked_formula(divergence: FDivergence) -> str:
    """The weight in words of `WEIGHTS`, after comparing it with the code.

    Raises:
        ValueError: where they differ.
    """
    formula, log_r = WEIGHTS[type(divergence).__name__], torch.tensor([-3.0, -0.5, 0.7, 4.0], dtype=torch.float64)
    names = {"sqrt": torch.sqrt, "log": torch.log, **vars(divergence), "r": log_r.exp()}
    written = torch.as_tensor(eval(formula, {"__builtins__": {}}, names), dtype=torch.float64)  # our own words, above
    if not torch.allclose(written.expand(4), divergence.weight(log_r), rtol=1e-9):
        raise ValueError(f"the weight of {type(divergence).__name__} is not {formula}: correct WEIGHTS")
    return formula


def behaviour(divergence: FDivergence) -> Behaviour:
    """Both integrals over ln r, by the trapezoidal rule; infinite by the powers of r that h has at its ends."""
    weight, at_ends = divergence.weight_slopes(torch.tensor([-40.0, 40.0], dtype=torch.float64))[:2]
    at_zero, at_infinity = (at_ends / weight).tolist()
    log_r = torch.linspace(0, 700, 140_001, dtype=torch.float64)
    scale = divergence.weight(log_r[:1]).item()

    def integral(integrand: Tensor) -> float:
        return torch.trapezoid(integrand, log_r).item() / scale

    missed = math.inf if at_infinity > 1 - 1e-6 else integral(divergence.weight(log_r) * (-log_r).exp())
    return Behaviour(missed, math.inf if at_zero < 1e-6 else integral(divergence.weight(-log_r)))


def weight_variance(divergence: FDivergence, apart: float = APART) -> float:
    """Var_q[h] / E_q[h]^2 between the teacher N(apart, 1) and the student N(0, 1), by the trapezoidal rule."""
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    share = (-x.square() / 2).exp()
    weight = divergence.weight(apart * x - apart**2 / 2)
    mean, square = ((share * w).sum() / share.sum() for w in (weight, weight.square()))
    return (square / mean.square() - 1).clamp_min(0).item()


def divergence_tables() -> dict[str, str]:
    fixed = [cls for cls in public(divergences, FDivergence) if not issubclass(cls, ChangingDivergence)]
    rows = []
    for made in map(example, in_order(WEIGHTS, fixed, "WEIGHTS")):
        modes = behaviour(made)
        costs = [number(cost) for cost in modes]
        asks = "yes" if made.needs_ratio else "no"
        formula = f"`{checked_formula(made)}`"
        rows.append([constructor(type(made)), formula, modes.word, *costs, asks, number(weight_variance(made))])
    heads = ("divergence", "weight h(r)", "modes", "missed", "invented", "needs a ratio", "variance of h")
    return {"divergences": table(heads, rows)}


def recipe_tables() -> dict[str, str]:
    rows = []
    for path in sorted(RECIPES.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
        if config["model"]["class_path"] != "DistillationModule":  # docs/reward.md
            continue
        model, trainer, data = config["model"]["init_args"], config["trainer"], config["data"]
        comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
        rates = [model[f"{name}_optimizer"]["init_args"]["lr"] for name in ("student", "fake_score")]
        rows.append(
            [
                f"[{path.stem}](../configs/recipes/{path.name})",
                f"`{spelled(model['objective'])}`",
                str(data["init_args"]["batch_size"]),
                " / ".join(f"{rate:.0e}".replace("e-0", "e-") for rate in dict.fromkeys(rates)),
                f"{model['fake_updates_per_student']} : 1",
                f"{trainer['max_steps']:,}",
                levels_of(model),
                "no" if data["class_path"] in ("LatentsOnly", "Prompts") else "yes",
                next(iter(re.findall(r"FID (\d+\.\d+)", comment)), "-"),
            ]
        )
    heads = (
        "recipe",
        "objective",
        "batch",
        "rate",
        "fake : student",
        "turns",
        "starts at",
        "real data",
        "their FID",
    )
    return {"recipes": table(heads, rows)}


def levels_of(model: dict[str, Any]) -> str:
    """Where a student's steps start: a noise level, or times of its teacher's path."""
    if "sigma_init" in model:
        return f"{model['sigma_init']:g}"
    return "t = " + ", ".join(f"{time:g}" for time in model["student_times"])


def spelled(value: Any) -> str:
    """A node of a configuration as one would write it in Python."""
    if isinstance(value, dict):
        return f"{value['class_path']}({', '.join(f'{k}={spelled(v)}' for k, v in value['init_args'].items())})"
    return str(value)


def number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.4g}" if abs(value) > 1e-9 else "0"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown; bars inside cells are escaped."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def filled(document: str) -> str:
    """The document with every table between its marks replaced.

    Raises:
        ValueError: where the document does not have each table's marks exactly once.
    """
    for name, made in {**objective_tables(), **divergence_tables(), **recipe_tables()}.items():
        marked = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        document, found = marked.subn(lambda match, made=made: match[1] + made + "\n" + match[2], document)
        if found != 1:
            raise ValueError(f"the document has one place '<!-- table: {name} -->' ... '<!-- end -->': got {found}")
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the document is stale")
    arguments = parser.parse_args()
    there = DOCUMENT.read_text(encoding="utf-8")
    wanted = filled(there)
    if not arguments.check:
        DOCUMENT.write_text(wanted, encoding="utf-8")
    elif wanted != there:
        print(f"{DOCUMENT.relative_to(ROOT)} is stale: run python tools/objectives_table.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
