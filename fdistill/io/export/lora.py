"""Adapters of a student or a tuned teacher as a LoRA file of a stock pipeline; a student's scheduler beside it."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from fdistill.core.atomic_files import replace_folder
from fdistill.core.places import LORA_RECORD, require_replaceable
from fdistill.core.weight_files import read_json
from fdistill.io.checkpoints import model_record
from fdistill.io.export.model_card import model_card
from fdistill.io.export.stock_text import (
    Scheduled,
    call_line,
    front_matter,
    is_text_student,
    notes_on,
    published_name,
    scheduled,
    write_scheduler,
)
from fdistill.io.stock_pipeline import METADATA, PIPELINE, pipeline_folder
from fdistill.models.adapters import adapter_layers, adapter_state
from fdistill.models.guidance import Guidance
from fdistill.models.networks import TextToImageNetwork
from fdistill.sampling.generator import GenerativeModel

FILE = "pytorch_lora_weights.safetensors"
"""Name under which diffusers looks for a LoRA in a folder."""

Names = Literal["peft", "kohya"]
"""peft: PART.LAYER.lora_A.weight, which every pipeline with a LoRA loader takes; kohya: lora_unet_LAYER with
lora_down.weight, lora_up.weight and alpha, which programs around Stable Diffusion take too, ComfyUI among them."""

_KOHYA = ("sd", "sdxl")  # families of which diffusers reads these names ...
_NOT_KOHYA = "add_embedding."  # ... but of these layers of SDXL, which it leaves out without a word


def export_lora(
    model: GenerativeModel,
    target: Path | str,
    names: Names = "peft",
    report: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a folder with the LoRA file and a card; alpha and rank are in the file's metadata.

    A student's has the scheduler that makes its steps, too; a tuned teacher is sampled by that of its base.

    Args:
        model: a text-to-image student or teacher with adapters, which `load_model(..., merge=False)` keeps.
        target: the folder; one that holds an exported model is replaced once the new one is whole.
        names: of the tensors.
        report: an evaluation report, for the card.
        dtype: of the tensors.

    Raises:
        OSError: if it cannot be written.
        ValueError: for a model without adapters, a pipeline without a LoRA loader, names that do not load again, or a
            target that holds something else.
    """
    network = _checked(model, names)
    made, target = _call(model, network), require_replaceable(Path(target))
    record = model_record(model)
    record["facts"] = {name: value for name, value in record["facts"].items() if name != PIPELINE}
    text = front_matter(model), _use(model, target.name, made)
    tensors = {name: value.cpu().to(dtype).contiguous() for name, value in _tensors(network, names).items()}
    with replace_folder(target) as folder:
        save_file(tensors, folder / FILE, metadata=_metadata(network) if names == "peft" else {"format": "pt"})
        if made.name:
            write_scheduler(folder, made)
        (folder / LORA_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        card = folder / "README.md"
        card.write_text(model_card(model, target.name, True, report, text), encoding="utf-8")
        (folder / FILE).chmod(card.stat().st_mode)  # safetensors writes for the owner only
    return target


def _checked(model: GenerativeModel, names: Names) -> TextToImageNetwork:
    """The network of a model that can be written so; raises ValueError for every other."""
    network: Any = model.denoiser.network
    remedy = f"leave --lora out, which writes the whole {model.kind}"
    if not isinstance(network, TextToImageNetwork) or PIPELINE not in model.facts:
        kind = f"a {model.kind} in a {type(network).__name__}"
        raise ValueError(f"a LoRA file is for a stock text-to-image pipeline: got {kind}; {remedy}")
    if not adapter_layers(network):
        raise ValueError(f"a LoRA file holds adapters: got a {model.kind} without, all of which learned; {remedy}")
    import diffusers

    name = str(read_json(pipeline_folder(model) / "model_index.json").get("_class_name"))
    if not hasattr(getattr(diffusers, name), "load_lora_weights"):
        raise ValueError(f"a {name} of diffusers loads no LoRA: {remedy}")
    family = network.spec()["init_args"]["family"]
    if names == "kohya" and family not in _KOHYA:
        raise ValueError(f"kohya's names load again for {' and '.join(_KOHYA)}: got {family}; leave --lora_names out")
    unread = [layer for layer in adapter_layers(network.stock) if layer.startswith(_NOT_KOHYA)]
    if names == "kohya" and unread:
        raise ValueError(
            f"kohya's names load again but for layers of {_NOT_KOHYA[:-1]}: got {', '.join(unread)}; leave "
            "--lora_names out, or train with targets dmd2"
        )
    return network


def _call(model: GenerativeModel, network: TextToImageNetwork) -> Scheduled:
    """How the pipeline is called, and a student's scheduler; a teacher has its base's, and no name."""
    guided, scale = network.family.guided or {}, Guidance.of(model.guidance).scale
    if is_text_student(model):
        made = scheduled(model)
        if "guidance_scale" in guided:  # the base's network has no weight that switches it off
            made.call["guidance_scale"] = 0.0
        return made
    call = {name: scale if isinstance(usual, float) else usual for name, usual in guided.items()}
    if network.family.guidance is not None:
        call["guidance_scale"] = network.family.guidance
    return Scheduled("", {}, {"num_inference_steps": len(model.sigmas) - 1} | call)


def _tensors(network: TextToImageNetwork, names: Names) -> dict[str, Tensor]:
    if names == "peft":
        return {f"{network.family.part}.{name}": value for name, value in adapter_state(network.stock).items()}
    tensors: dict[str, Tensor] = {}
    for name, layer in adapter_layers(network.stock).items():
        said = f"lora_unet_{name.replace('.', '_')}"
        down, up = layer.lora_A.weight.detach(), layer.lora_B.weight.detach()
        tensors |= {f"{said}.lora_down.weight": down, f"{said}.lora_up.weight": up}
        tensors[f"{said}.alpha"] = torch.tensor(layer.scale * len(down))
    return tensors


def _metadata(network: TextToImageNetwork) -> dict[str, str]:
    """What diffusers keeps of peft's configuration; without it alpha would be taken for the rank."""
    layers = adapter_layers(network.stock)
    first = next(iter(layers.values()))
    rank = len(first.lora_A.weight)
    known = {"r": rank, "lora_alpha": first.scale * rank, "target_modules": sorted(layers)}
    part = network.family.part
    return {"format": "pt", METADATA: json.dumps({f"{part}.{name}": value for name, value in known.items()})}


def _use(model: GenerativeModel, name: str, made: Scheduled) -> str:
    """The card's section on use."""
    source = pipeline_folder(model)
    published = published_name(source)
    base, where = (published, "") if published else (source.name, "  # the teacher's pipeline")
    scheduler = f'pipeline.scheduler = {made.name}.from_pretrained("{name}", subfolder="scheduler")\n'
    code = (
        f"import torch\nfrom diffusers import DiffusionPipeline{f', {made.name}' if made.name else ''}\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{base}"){where}\n'
        f"{scheduler if made.name else ''}"
        f'pipeline.load_lora_weights("{name}", weight_name="{FILE}")\n'
        f"{call_line(made)}"
    )
    notes = notes_on(made) if made.name else "Its scheduler is the pipeline's own."
    return f"## Use\n\n```python\n{code}\n```\n\nNeeds diffusers, transformers and peft. {notes}"
