"""README.md of an exported folder: what it is, how to run it, what it measured, where it came from."""

from importlib.metadata import version
from typing import Any

from fdistill.generative_model import GenerativeModel

_COLUMNS = ("frechet_distance", "precision", "recall", "accuracy", "class_entropy", "vendi")
_ROWS = {"floor": "held-out real data (floor)", "teacher": "teacher", "student": "student", "class_gaussian": "per-class Gaussian"}


def model_card(model: GenerativeModel, name: str, stock: bool, report: dict[str, Any] | None) -> str:
    """Markdown with the front matter that model hubs read; it states only what the record and the report hold."""
    tags = ["one-step-generation", "distillation"] if model.kind == "student" else ["diffusion"]
    front = ["---", *(["library_name: diffusers"] if stock else []), "tags:", *(f"- {tag}" for tag in tags), "---"]
    parts = ["\n".join(front), f"# {name}", _summary(model), _usage(model, name, stock), _measured(model, report), _origin(model)]
    return "\n\n".join(parts) + "\n"


def _summary(model: GenerativeModel) -> str:
    shape = "x".join(map(str, model.sample_shape))
    classes = f", {model.num_classes} classes" if model.num_classes else ", unconditional"
    parameters = sum(value.numel() for value in model.denoiser.parameters())
    what = "A one-step generator: one network evaluation per sample" if model.kind == "student" else "A diffusion teacher"
    return (
        f"{what}. Samples {shape}{classes}, {parameters:,} parameters, {model.evaluations} network "
        f"evaluation{'s' if model.evaluations > 1 else ''} per sample."
    )


def _usage(model: GenerativeModel, name: str, stock: bool) -> str:
    if stock:
        labels = f", class_labels=[i % {model.num_classes} for i in range(16)]" if model.num_classes else ""
        code = (
            "import torch\nfrom diffusers import ConsistencyModelPipeline\n\n"
            f'pipeline = ConsistencyModelPipeline.from_pretrained("{name}")\n'
            f"images = pipeline(16{labels}, generator=torch.Generator().manual_seed(0)).images"
        )
    elif model.kind == "student":
        code = (
            "import torch\nfrom fdistill.export.pipeline import OneStepPipeline\n\n"
            f'pipeline = OneStepPipeline.from_pretrained("{name}")\n'
            'samples = pipeline(16, generator=torch.Generator().manual_seed(0), output_type="pt").images'
        )
    else:
        return f"## Use\n\n```\nfdistill sample --checkpoint {name} --n 64 --seed 0 --out samples.png\n```"
    return f"## Use\n\n```python\n{code}\n```\n\nThe same samples: `fdistill sample --checkpoint {name} --n 16 --seed 0`."


def _measured(model: GenerativeModel, report: dict[str, Any] | None) -> str:
    if report is None:
        return "## Measured\n\nNot measured at export. `fdistill evaluate --checkpoint` measures it."
    lines = ["| | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for row, title in _ROWS.items():
        if row in report:
            values = (report[row].get(column) for column in _COLUMNS)
            lines.append(f"| {title} | " + " | ".join("-" if v is None else f"{v:.3f}" for v in values) + " |")
    notes = f"n = {report.get('n')}, {report.get('repeats', 1)} repeats, seed {report.get('seed')}. Features: {report.get('features')}."
    speed = f" {report['speedup']:.0f} times the teacher's samples per second." if report.get("speedup") else ""
    return "## Measured\n\n" + "\n".join(lines) + f"\n\n{notes}{speed if model.kind == 'student' else ''}"


def _origin(model: GenerativeModel) -> str:
    facts = {**model.facts, "sigma_init" if model.kind == "student" else "sigma_max": float(model.sigmas[0])}
    lines = [f"- {name}: {_words(value)}" for name, value in facts.items() if value is not None]
    return "\n".join(["## Origin", "", f"- made with: fdistill {version('fdistill')}", *lines])


def _words(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        arguments = ", ".join(f"{name}={_words(item)}" for name, item in value["init_args"].items())
        return f"{value['class_path'].rsplit('.', 1)[-1]}({arguments})"
    return str(value)
