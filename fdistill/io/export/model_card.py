"""README.md of an exported folder: what it is, how to run it, what it measured, where it came from."""

from importlib.metadata import version
from typing import Any

from fdistill.io.export.stock_levels import stock_levels
from fdistill.models.guidance import Guidance
from fdistill.sampling.generator import GenerativeModel

_COLUMNS = {
    "frechet_distance": "Fréchet distance ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "accuracy": "label accuracy ↑",
    "class_entropy": "class entropy ↑",
    "vendi": "Vendi score",
}
_ROWS = {
    "floor": "real data (floor)",
    "teacher": "teacher",
    "student": "student",
    "class_gaussian": "one Gaussian per class",
}
_FACTS = {
    "objective": "objective",
    "divergence": "divergence",
    "teacher": "teacher",
    "guidance": "guidance scale of the teacher",
    "guidance_interval": "noise levels between which the teacher was guided",
    "guide": "guide of the teacher",
    "adversarial_weight": "weight of the adversarial term",
    "turn": "kind of turn",
    "turns": "turns",
    "batch_size": "batch size",
    "train_seconds": "seconds of training",
    "data": "data",
    "seed": "seed",
}


def model_card(
    model: GenerativeModel,
    name: str,
    stock: bool,
    report: dict[str, Any] | None,
    text: tuple[list[str], str] | None = None,
) -> str:
    """Markdown with the front matter that model hubs read; it states only what the record and the report hold."""
    steps = "one-step" if model.evaluations == 1 else "few-step"
    tags = [f"{steps}-generation", "distillation"] if model.kind == "student" else ["diffusion"]
    front = [
        "---",
        *(text[0] if text else ["library_name: diffusers"] if stock else []),
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]
    parts = [
        "\n".join(front),
        f"# {name}",
        *((text[1], _summary(model)) if text else (_summary(model), _usage(model, name, stock))),
        _measured(model, report),
        _origin(model),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(model: GenerativeModel) -> str:
    steps = "one" if len(model.sigmas) == 1 else len(model.sigmas)
    what = f"A {steps}-step generator" if model.kind == "student" else "A diffusion model"
    shape = "x".join(map(str, model.sample_shape))
    classes = (
        f"of {model.num_classes} classes"
        if model.num_classes
        else "of prompts"
        if model.denoiser.takes
        else "without classes"
    )
    parameters = sum(value.numel() for value in model.denoiser.parameters())
    plural = "s" if model.evaluations > 1 else ""
    made = "samples" if model.decoder is None else "latents that its VAE decodes,"
    return (
        f"{what}: {made} of shape {shape} {classes}, {model.evaluations} network evaluation{plural} per sample, "
        f"{parameters:,} parameters."
    )


def _usage(model: GenerativeModel, name: str, stock: bool) -> str:
    command = f"fdistill sample --checkpoint {name} --n 16 --seed 0"
    if model.kind == "teacher":
        return f"## Use\n\n```\n{command}\n```"
    labels = f", class_labels=[i % {model.num_classes} for i in range(16)]" if model.num_classes else ""
    module, pipeline = (
        ("diffusers", "ConsistencyModelPipeline") if stock else ("fdistill.io.export.pipeline", "OneStepPipeline")
    )
    several = len(model.sigmas) > 1
    found = stock_levels(model.sigmas) if stock and several else None
    asked = "" if found is None else f", {found.arguments}"
    output = "" if len(model.sample_shape) == 3 else ', output_type="pt"'
    code = (
        f"import torch\nfrom {module} import {pipeline}\n\n"
        f'pipeline = {pipeline}.from_pretrained("{name}")\n'
        f"samples = pipeline(16{labels}{asked}, generator=torch.Generator().manual_seed(0){output}).images"
    )
    if stock:
        needs = "Needs diffusers alone." + " It makes one step unless asked for all of them, as here." * several
    else:
        levels = " or no scheduler of it has these noise levels" * several
        needs = f"Needs fdistill, because the network is no class of diffusers{levels}."
    return f"## Use\n\n{needs}\n\n```python\n{code}\n```\n\nThe same samples from the command line: `{command}`."


def _measured(model: GenerativeModel, report: dict[str, Any] | None) -> str:
    if report is None:
        return "## Measured\n\nNothing yet. `fdistill evaluate` measures, and `fdistill export --report` puts it here."
    lines = ["| | " + " | ".join(_COLUMNS.values()) + " |", "|---" + "|--:" * len(_COLUMNS) + "|"]
    for row, title in _ROWS.items():
        if row in report:
            values = (report[row].get(column) for column in _COLUMNS)
            title = f"**this {title}**" if row == model.kind else title
            lines.append(f"| {title} | " + " | ".join("-" if v is None else f"{v:.3f}" for v in values) + " |")
    floor = "other held-out images" if "captions" in report else "real training data"
    notes = (
        f"{report.get('n')} samples of each row against as many held-out real ones, mean of {report.get('repeats', 1)} "
        f"draws, seed {report.get('seed')}, in the features of: {report.get('features')}. The floor is {floor} "
        "measured the same way: a distance near it is sampling noise."
    )
    notes += "".join(_of_captions(key, rows["student"]) for key, rows in report.get("captions", {}).items())
    if report.get("speedup"):
        notes += f" The student makes {report['speedup']:.3g} times as many samples per second as the teacher."
    return "## Measured\n\n" + "\n".join(lines) + f"\n\n{notes}"


def _of_captions(key: str, row: dict[str, float]) -> str:
    return (
        f" Of {key} captions {row['accuracy']:.1%} are drawn with the right digit and both colours; the spread of one "
        f"caption is {row['spread']:.3f}."
    )


def _origin(model: GenerativeModel) -> str:
    start: dict[str, Any] = {"sigma_init" if model.kind == "student" else "sigma_max": float(model.sigmas[0])}
    if model.kind == "student" and len(model.sigmas) > 1:
        start["renoise_levels"] = model.sigmas[1:].tolist()
    if model.temperature != 1:
        start["temperature"] = model.temperature
    if model.sampler is not None:
        start["sampler"] = model.sampler.spec()
    guidance = Guidance.of(model.guidance)
    if guidance.scale != 1:
        start["guidance when sampled"] = str(guidance)
    known = {title: model.facts.get(name) for name, title in _FACTS.items()}
    others = {name: value for name, value in model.facts.items() if name not in (*_FACTS, "pipeline")}
    lines = [f"- {name}: {_words(value)}" for name, value in {**known, **start, **others}.items() if value is not None]
    return "\n".join(["## Origin", "", f"- made with: fdistill {version('fdistill')}", *lines])


def _words(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        arguments = ", ".join(f"{name}={_words(item)}" for name, item in value["init_args"].items())
        return f"{value['class_path'].rsplit('.', 1)[-1]}({arguments})"
    return str(value)
