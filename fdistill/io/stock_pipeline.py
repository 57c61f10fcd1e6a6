"""What a stock text-to-image pipeline gives its network: conditions, the null condition, times; without the network.

The pipeline runs as it stands, with its own tokenizers and text encoders, around a network that has shapes and no
weights, and stops where its scheduler would take the first step. So nothing of a family is written down a second time.
"""

import contextlib
import importlib.util
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fdistill.core.build import build_stock, known_config
from fdistill.core.weight_files import BUILD_ERRORS, CheckpointError, read_config, read_json, reason, shown
from fdistill.models.condition import Condition
from fdistill.models.networks.text import FAMILIES, Family, family_of
from fdistill.sampling.generator import GenerativeModel

METADATA = "lora_adapter_metadata"
"""Under which diffusers keeps what peft knows of an adapter."""

PIPELINE = "pipeline"
"""Name of the fact that says in which folder a model's tokenizers and text encoders lie."""

NULL_WEIGHTS = "fdistill_null.safetensors"
"""Of an exported folder: the null condition, which stock pipelines encode anew."""

COND_PROJ = "time_embedding.cond_proj.weight"
"""A zero weight of exported UNets: a network with one is told its guidance, and its pipeline makes no other."""

_LIBRARIES = ("diffusers", "transformers")
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
_SIDE = 1024  # of images of pipelines that say it only in the body of their call
_PACKAGES = ("transformers", "tokenizers")


class Asked(NamedTuple):
    """What the network of a pipeline is given at the first step.

    Attributes:
        condition: of the prompts.
        null: of the negative prompts; None where it was called without.
        times: of a flow, t in [0, 1] of every step and 0; else timesteps, falling.
    """

    condition: Condition
    null: Condition | None
    times: Tensor


class StockPipeline:
    """The pipeline in a folder, its network without weights; text encoders and tokenizers are those in the folder."""

    def __init__(self, folder: Path | str) -> None:
        """Args:
        folder: with a model_index.json.

        Raises:
            CheckpointError: if its family is unknown, a part is missing, or the packages that read text are.
        """
        self.folder = Path(folder)
        index = read_json(self.folder / "model_index.json", "the index of a diffusers pipeline")
        self.name, self.index = str(index.get("_class_name")), index
        self.kind = family_of(self.name)
        if self.kind is None:
            known = ", ".join(name for family in FAMILIES.values() for name in family.pipelines)
            raise CheckpointError(f"{folder} holds a {shown(self.name)}: expected a text-to-image pipeline of {known}")
        self.family = FAMILIES[self.kind]
        self.has_null = self.family.has_null and not index.get("is_distilled")
        _check_parts(self.folder, index, self.family.part)
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise CheckpointError(f"prompts need {' and '.join(missing)}, not found here: pip install 'fdistill[text]'")
        import diffusers

        with _quiet():  # their modules are read here, and some warn that torchvision is absent
            self.network_class: type[nn.Module] = getattr(diffusers, self.family.stock)
            pipeline_class = getattr(diffusers, self.name)
        file = self.folder / self.family.part / "config.json"
        config = read_config(file, "the configuration of a text-to-image network")
        if config.get("_class_name") != self.family.stock:
            raise CheckpointError(f"{file} is of a {shown(config.get('_class_name'))}: expected {self.family.stock}")
        plain = {name: value for name, value in config.items() if name[:1] != "_"}
        if (self.folder / NULL_WEIGHTS).is_file():  # a student of ours, whose weight for its guidance is zero
            plain.pop("time_cond_proj_dim", None)
        self.config = known_config(self.network_class, plain, file)
        self.calls: list[dict[str, Any]] = []
        self.network: Any = self._network()
        try:
            self.pipeline = self._loaded(pipeline_class)
        except (*BUILD_ERRORS, OSError) as error:
            raise CheckpointError(f"{folder}: diffusers loads no {self.name} of it: {reason(error)}") from error

    def _loaded(self, cls: Any) -> Any:
        left_out: dict[str, Any] = {name: None for name in _LEFT_OUT if name in self.index}
        if "safety_checker" in left_out:
            left_out["requires_safety_checker"] = False
        given: dict[str, Any] = {self.family.part: self.network, **left_out}
        with _quiet():
            given |= {"local_files_only": True, "variant": weights_variant(self.folder), "dtype": torch.float32}
            pipeline = cls.from_pretrained(self.folder, **given)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _network(self) -> nn.Module:
        """The network of shapes alone, which writes down what it is called with."""
        stock = self.network_class.forward
        calls = self.calls

        def forward(self: Any, *given: Any, **named: Any) -> Any:
            arguments = inspect.signature(stock).bind(self, *given, **named).arguments
            calls.append(_dotted(arguments))
            x = next(value for name, value in arguments.items() if name != "self")
            return ([torch.zeros_like(each) for each in x] if isinstance(x, list) else torch.zeros_like(x),)

        with torch.device("meta"):
            network = build_stock(self.network_class, self.config)
        made: Any = {"forward": forward, "device": torch.device("cpu"), "dtype": torch.float32}
        network.__class__ = type(self.network_class.__name__, (self.network_class,), made)
        return network

    @property
    def steps(self) -> int:
        """The number of steps that the pipeline makes by itself."""
        return inspect.signature(self.pipeline.__call__).parameters["num_inference_steps"].default

    @property
    def side(self) -> tuple[int, int]:
        """Height and width of the images that the pipeline makes by itself."""
        known = inspect.signature(self.pipeline.__call__).parameters["height"].default
        if known is not None:
            return known, known
        latents = self.network.config.get("sample_size") or getattr(self.pipeline, "default_sample_size", None)
        if latents is None:
            return _SIDE, _SIDE
        height, width = (latents, latents) if isinstance(latents, int) else latents
        return height * self.vae_factor, width * self.vae_factor

    @property
    def vae_factor(self) -> int:
        """Side of an image for each unit of the side of what its VAE decodes."""
        return self.pipeline.vae_scale_factor

    def sample_shape(self, side: tuple[int, int]) -> tuple[int, int, int]:
        """Of the latents of an image of that height and width; ValueError where the VAE does not divide them."""
        return self.family.sample_shape(self.network.config, side, self.vae_factor)

    def at(self, sample_shape: tuple[int, int, int]) -> Family:
        """How its network is called at latents of that shape."""
        return self.family(self.network.config, sample_shape, self.vae_factor, None)

    @property
    def guidance(self) -> float:
        """The scale that the pipeline tells a network with embedded guidance by itself."""
        return inspect.signature(self.pipeline.__call__).parameters["guidance_scale"].default

    def unknown(self, prompt: str) -> list[str]:
        """The words that no tokenizer knows: in their place the network would read one sign, for CLIP its end.

        Tokenizers of bytes or letters know all words that those make up.
        """
        reads = [part for part in self.pipeline.components.values() if hasattr(part, "tokenize")]
        if not reads:
            return []
        with _quiet():  # one word may be longer than what the network reads
            return [word for word in prompt.split() if all(part.unk_token in part.tokenize(word) for part in reads)]

    def takes(self, name: str) -> bool:
        """Whether the pipeline's call has an argument of that name."""
        return name in inspect.signature(self.pipeline.__call__).parameters

    def ask(
        self,
        prompts: Sequence[str],
        side: tuple[int, int],
        negative: str | None = None,
        null: bool = True,
        num_steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Asked:
        """What the network is given for these prompts.

        Args:
            prompts: at least one.
            side: height and width of the images.
            negative: the negative prompt; None for what the pipeline takes by itself.
            null: whether the negative prompt is wanted.
            num_steps: the pipeline's own where not given.
            settings: further arguments of the pipeline's call, as max_sequence_length.

        Raises:
            ValueError: where the pipeline refuses them, in its words.
        """
        known, switch = inspect.signature(self.pipeline.__call__).parameters, self.family.guided or {}
        guided = null and bool(switch)
        arguments = {
            "height": side[0],
            "width": side[1],
            "num_inference_steps": num_steps or self.steps,
            **(switch if guided else {name: 0.0 for name in switch if name != "negative_prompt"}),
            **({"negative_prompt": negative} if guided and negative is not None else {}),
            **(settings or {}),
        }
        if not known.keys() >= arguments.keys():
            raise ValueError(f"a {self.name} takes no {sorted(arguments.keys() - known.keys())}: leave it out")
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
        own = {"prompt": list(prompts), "generator": torch.Generator(), "output_type": "latent"}
        if "use_resolution_binning" in known:
            own["use_resolution_binning"] = False
        if arguments["num_inference_steps"] != 2 and "intermediate_timesteps" in known:
            own["intermediate_timesteps"] = None  # which is of two steps
        self.calls.clear()
        shape = self.sample_shape(side)
        scheduler = self.pipeline.scheduler
        scheduler.step = _stop
        try:
            with _quiet(), torch.no_grad(), contextlib.suppress(_StepError):
                self.pipeline(**own, **arguments)
        except BUILD_ERRORS as error:
            raise ValueError(f"a {self.name} refuses these prompts: {reason(error)}") from error
        family = self.at(shape)
        conditions = self._conditions([family.from_call(call) for call in self.calls], len(prompts))
        return Asked(*conditions, self._times(scheduler))

    def _conditions(self, calls: list[dict[str, Tensor]], n: int) -> tuple[Condition, Condition | None]:
        """Of the prompts and of the negative ones, in one call of the network or in two."""
        made = [Condition(call) for call in calls]
        first = made[0]
        if len(made) == 1 and first.length == 2 * n:
            halves = first.rows(slice(n)), first.rows(slice(n, None))
            return halves[::-1] if self.family.null_first else halves
        return first, (made[1] if len(made) > 1 else None)

    def _times(self, scheduler: Any) -> Tensor:
        if self.family.time_scale is None:
            return scheduler.timesteps.double().cpu()
        if not hasattr(scheduler, "sigmas"):  # SCMScheduler's times are angles
            angles = scheduler.timesteps.double().clamp(0, math.pi / 2)
            return angles.sin() / (angles.sin() + angles.cos())
        return scheduler.sigmas.double().cpu()


def pipeline_folder(model: GenerativeModel) -> Path:
    """Where the text encoders of a model that takes prompts lie; CheckpointError if they no longer do."""
    folder = Path(model.facts[PIPELINE])
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"the text encoders of this model lie in {folder}, where its teacher was imported from: expected that "
            "pipeline, got nothing; put it, or a link to it, back there"
        )
    return folder


def prompt_condition(
    model: GenerativeModel, prompts: Sequence[str], n: int, pipeline: StockPipeline | None = None
) -> Condition:
    """The conditions of n samples of a model that takes prompts, which are repeated up to n.

    Args:
        model: with the fact that says where its pipeline lies.
        prompts: at least one.
        n: how many samples.
        pipeline: the one that lies there, where it is loaded already.

    Raises:
        ValueError: where it takes none, its pipeline refuses them, or no tokenizer knows a word.
        CheckpointError: where the folder of its text encoders is no longer there.
    """
    if PIPELINE not in model.facts:
        raise ValueError("this model takes no prompts: leave --prompt out")
    pipeline = pipeline or StockPipeline(pipeline_folder(model))
    factor: Any = model.denoiser.network.image_factor
    height, width = (int(length * factor) for length in model.sample_shape[1:])
    if unknown := [word for prompt in prompts for word in pipeline.unknown(prompt)]:
        raise ValueError(f"a prompt has words that the text encoder knows: it does not know {', '.join(unknown)[:200]}")
    # no condition depends on the number of steps, and exported schedulers refuse all but few
    asked = pipeline.ask(prompts, (height, width), null=False, num_steps=1)
    return asked.condition.rows(torch.arange(n) % len(prompts))


class _StepError(Exception):
    """All is known, and the scheduler's step is not wanted."""


def _stop(*_: Any, **__: Any) -> None:
    raise _StepError


def _dotted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in arguments.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        found.update({f"{name}.{key}".rstrip("."): each for key, each in inner})
    return found


def _check_parts(folder: Path, index: Mapping[str, Any], part: str) -> None:
    """Raises CheckpointError where a part is of a library that is not known, or lies not in the folder."""
    parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]}
    wanted = {name for name in parts if name not in _LEFT_OUT}
    strange = [f"{name} of {parts[name][0]}" for name in sorted(wanted) if parts[name][0] not in _LIBRARIES]
    if strange:
        raise CheckpointError(
            f"{folder} has a {shown(strange[0])}: expected parts of {' and '.join(_LIBRARIES)}, whose code is known"
        )
    texts = sorted(name for name in wanted if name.startswith("text_encoder"))
    tokenizers = (name.replace("text_encoder", "tokenizer") for name in texts)
    needed = {part, "scheduler", "vae", "text_encoder", *texts, *tokenizers}
    absent = sorted(name for name in needed if name not in parts or not (folder / name).is_dir())
    if absent:
        raise CheckpointError(
            f"{folder} has no {absent[0]}, which its prompts or pictures need: expected a whole pipeline with "
            f"{', '.join(sorted(needed))}; download it again"
        )


def weights_variant(folder: Path) -> str | None:
    """The variant of the weights of its text encoders, where there are no plain ones."""
    files = [file.name.split(".") for file in (folder / "text_encoder").glob("*.safetensors")]
    variants = {name[1].split("-")[0] for name in files if len(name) == 3}
    return None if any(len(name) == 2 for name in files) or len(variants) != 1 else variants.pop()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no warnings of libraries whose remedies are none here."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [(library, library.get_verbosity()) for library in (of_diffusers, of_transformers)]
    bars = of_transformers.is_progress_bar_enabled()
    try:
        for library, _ in before:
            library.set_verbosity_error()
        of_transformers.disable_progress_bar()
        of_diffusers.disable_progress_bar()
        yield
    finally:
        for library, level in before:
            library.set_verbosity(level)
        if bars:
            of_transformers.enable_progress_bar()
            of_diffusers.enable_progress_bar()
