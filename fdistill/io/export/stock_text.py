"""A text-to-image student as its teacher's own pipeline: the scheduler that makes its steps, and the call."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from fdistill.core.build import build_stock
from fdistill.core.weight_files import read_json
from fdistill.io.stock_pipeline import COND_PROJ, NULL_WEIGHTS, PIPELINE, pipeline_folder, weights_variant
from fdistill.models.networks import TextToImageNetwork
from fdistill.models.networks.text import StableDiffusion
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import NOISE_ALONE, DDPMPath
from fdistill.theory.preconditioning import EpsPrediction, VPrediction, X0Prediction

_PREDICTIONS = {EpsPrediction: "epsilon", VPrediction: "v_prediction", X0Prediction: "sample"}
_WHOLE = 1e-2  # how far from a whole timestep a level may lie that was typed with six digits


class Scheduled(NamedTuple):
    """The scheduler that makes a student's steps, and what the pipeline is called with.

    Attributes:
        name: class of diffusers.
        config: its arguments.
        call: arguments of the pipeline's call.
        global_noise: whether the noise of later steps comes from torch's global generator.
    """

    name: str
    config: dict[str, Any]
    call: dict[str, Any]
    global_noise: bool = False


def is_text_student(model: GenerativeModel) -> bool:
    """Whether a model is a student whose teacher was a stock text-to-image pipeline."""
    return (
        model.kind == "student" and isinstance(model.denoiser.network, TextToImageNetwork) and PIPELINE in model.facts
    )


def check_stock_noise(model: GenerativeModel) -> None:
    """Raises ValueError for a student of another temperature than that of the noise that stock pipelines draw."""
    if model.temperature != 1:
        raise ValueError(
            f"stock pipelines draw noise of temperature 1: got a student of {model.temperature:g}; export it with "
            "--temperature 1, and scale the latents of its calls"
        )


def scheduled(model: GenerativeModel) -> Scheduled:
    """The scheduler and the call of a student that `is_text_student`.

    Raises:
        ValueError: where no scheduler of diffusers makes its steps, with what it would have to start from, or its
            noise is not that of stock pipelines.
    """
    check_stock_noise(model)
    path = getattr(model.denoiser.preconditioning, "path", None)
    made = _on_timesteps(model, path) if isinstance(path, DDPMPath) else _on_flow(model)
    family = _network(model).family
    call = made.call | ({} if family.guidance is None else {"guidance_scale": family.guidance})
    if "guidance_scale" in (family.guided or {}) and not isinstance(family, StableDiffusion):
        call["guidance_scale"] = 0.0
    return made._replace(call=call)


def _on_timesteps(model: GenerativeModel, path: DDPMPath) -> Scheduled:
    given = path.spec()["init_args"]
    config = {name: given[name] for name in ("beta_start", "beta_end", "beta_schedule", "trained_betas")}
    config["rescale_betas_zero_snr"] = given["zero_terminal_snr"]
    config["prediction_type"] = _PREDICTIONS[type(model.denoiser.preconditioning)]  # type: ignore[index]
    last, times = path.num_timesteps - 1, path.time(model.sigmas) * (path.num_timesteps - 1)
    steps = [int(step) for step in times.round().tolist()]
    if (times - times.round()).abs().max() > _WHOLE:
        whole = path.noise_ratio(times.round() / last).tolist()
        levels = ", ".join(f"{level:g}" for level in whole)
        raise ValueError(
            f"stock schedulers step at whole timesteps: got a student's at {times.tolist()}; train it at noise levels "
            f"(sigma_init, renoise_levels) {levels}, those of {steps}"
        )
    if model.start == "sigma" and steps != [last]:
        raise ValueError(
            "stock pipelines of several steps, or below the last timestep, start from noise of unit variance: got a "
            "student that starts at sigma z; train it with start unit"
        )
    config["num_train_timesteps"] = path.num_timesteps
    config["steps_offset"] = 1  # which neither scheduler reads here; pipelines warn of any other
    if model.start == "sigma":
        return Scheduled(
            "EulerDiscreteScheduler", config | {"timestep_spacing": "trailing"}, {"num_inference_steps": 1}
        )
    config |= {"clip_sample": False, "original_inference_steps": len(steps)}
    call: dict[str, Any] = {"num_inference_steps": len(steps)}
    if len(steps) == 1 and steps[0] < last:
        log_alpha = -torch.log1p(path.noise_ratio(torch.arange(steps[0] + 1, dtype=torch.float64) / last).square())
        betas = -torch.expm1(torch.diff(log_alpha, prepend=log_alpha.new_zeros(1)))
        config |= {
            "num_train_timesteps": steps[0] + 1,
            "trained_betas": betas.tolist(),
            "rescale_betas_zero_snr": False,
        }
    elif steps != [path.num_timesteps // len(steps) * (len(steps) - k) - 1 for k in range(len(steps))]:
        config["original_inference_steps"] = 1  # so that any number of steps but one is an error
        call = {"timesteps": steps}
    return Scheduled("LCMScheduler", config, call)


def _on_flow(model: GenerativeModel) -> Scheduled:
    if float(model.sigmas[0]) < NOISE_ALONE / 100:
        raise ValueError(
            f"a stock flow starts from noise alone: expected a student from sigma_init {NOISE_ALONE:g}, got "
            f"{float(model.sigmas[0]):g}"
        )
    times = (model.sigmas / (1 + model.sigmas)).tolist()
    if _network(model).spec()["init_args"]["family"] == "sana-sprint":
        if len(times) > 1:
            raise ValueError(f"a SanaSprintPipeline is exported for one step: got {len(times)}")
        return Scheduled("SCMScheduler", {}, {"num_inference_steps": 1, "intermediate_timesteps": None})
    config = {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
    if len(times) == 1:
        return Scheduled("FlowMatchEulerDiscreteScheduler", config, {"num_inference_steps": 1})
    config["stochastic_sampling"] = True
    named = {"sigmas": [1.0, *(round(time, 9) for time in times[1:])]}
    return Scheduled("FlowMatchEulerDiscreteScheduler", config, named, not _network(model).family.hands_on_generator)


def write_text_pipeline(model: GenerativeModel, folder: Path, made: Scheduled, dtype: torch.dtype) -> None:
    """Write the pipeline: network and scheduler are the student's, all else is copied from its teacher's folder.

    Args:
        model: a student that `is_text_student`.
        folder: an empty one.
        made: what `scheduled` found.
        dtype: of the network's weights.

    Raises:
        CheckpointError: where the teacher's folder is no longer there.
    """
    network, source = _network(model), pipeline_folder(model)
    index = read_json(source / "model_index.json")
    part = network.family.part
    for name, value in index.items():
        if name not in (part, "scheduler") and isinstance(value, list) and (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
            _name_plainly(folder / name, weights_variant(source))
    index["scheduler"] = ["diffusers", made.name]
    index.pop("_name_or_path", None)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    write_scheduler(folder, made)
    _stock_network(network, dtype).save_pretrained(folder / part, max_shard_size="5GB", safe_serialization=True)
    null = network.null_tensors()
    if null:
        save_file(null, folder / NULL_WEIGHTS, metadata={"format": "pt"})


def _name_plainly(part: Path, variant: str | None) -> None:
    """Weights of a variant under the names that are found without asking for it; their index names the shards."""
    for file in sorted(part.iterdir()) if variant else []:
        plain = file.with_name(file.name.replace(f".{variant}.", "."))
        if not plain.exists():
            file.rename(plain)


def write_scheduler(folder: Path, made: Scheduled) -> None:
    """Write its folder, as pipelines have it."""
    (folder / "scheduler").mkdir()
    scheduler = json.dumps({"_class_name": made.name, **made.config}, indent=2)
    (folder / "scheduler" / "scheduler_config.json").write_text(scheduler + "\n", encoding="utf-8")


def _stock_network(network: TextToImageNetwork, dtype: torch.dtype) -> Any:
    """A copy in that type; of a UNet one whose pipeline makes no classifier-free guidance."""
    stock: Any = network.stock
    config = {name: value for name, value in dict(stock.config).items() if name[:1] != "_"}
    state: dict[str, Tensor] = {name: value.detach().cpu().to(dtype) for name, value in stock.state_dict().items()}
    if isinstance(network.family, StableDiffusion):
        config["time_cond_proj_dim"] = 1
        state[COND_PROJ] = torch.zeros(config["block_out_channels"][0], 1, dtype=dtype)
    with torch.device("meta"):
        copy = build_stock(type(stock), config)
    copy.load_state_dict(state, assign=True)
    return copy


def card_lines(model: GenerativeModel, name: str, made: Scheduled, dtype: torch.dtype) -> tuple[list[str], str]:
    """Front matter and the section on use of a model card."""
    front = front_matter(model)
    kind = "" if dtype == torch.float32 else f", dtype={dtype}"
    code = (
        f"import torch\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{name}"{kind})\n'
        f"{call_line(made)}"
    )
    return front, f"## Use\n\n```python\n{code}\n```\n\nNeeds diffusers and transformers alone. {notes_on(made)}"


def front_matter(model: GenerativeModel) -> list[str]:
    """Of a card of a student that `is_text_student`: license and base are those of its teacher's card and index."""
    source = pipeline_folder(model)
    front = ["library_name: diffusers", "pipeline_tag: text-to-image", *_license(source / "README.md")]
    base = published_name(source)
    return front if base is None else [*front, f"base_model: {base}"]


def published_name(source: Path) -> str | None:
    """Under which the pipeline in a folder is found on the hub; None where the folder does not say."""
    base = str(read_json(source / "model_index.json").get("_name_or_path", ""))
    return base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None


def call_line(made: Scheduled) -> str:
    """The line of Python that calls the pipeline."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in made.call.items())
    seed = "torch.manual_seed(0)" if made.global_noise else "torch.Generator().manual_seed(0)"
    return f'image = pipeline("a prompt", {arguments}, generator={seed}).images[0]'


def notes_on(made: Scheduled) -> str:
    """What a card says of that call."""
    notes = "It was trained for these steps and makes no good pictures in others."
    if made.global_noise:
        notes += " Noise between its steps comes from torch's global generator, whose seed is set here."
    return notes


def _license(card: Path) -> list[str]:
    """The lines of a card's front matter that say its license; that of a student is its teacher's."""
    if not card.is_file():
        return []
    front = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2]
    lines = front[0].splitlines() if front else []
    return [line for line in lines if re.fullmatch(r"license(_name|_link)?: [\w./:-]+", line)]


def _network(model: GenerativeModel) -> TextToImageNetwork:
    network = model.denoiser.network
    assert isinstance(network, TextToImageNetwork)
    return network
