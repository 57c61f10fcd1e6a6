"""The text encoders of stock pipelines: what each family makes of a prompt, under its network's own argument names."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fdistill.core.fingerprints import fingerprint
from fdistill.core.weight_files import BUILD_ERRORS, CheckpointError, brief, read_json, reason
from fdistill.models.networks.text import FAMILIES, PromptOutputs, StableDiffusion

_OF_OTHERS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "_commit_hash")
"""Entries of a configuration that do not change what an encoder computes."""
_SETTINGS = ("max_sequence_length", "complex_human_instruction", "system_prompt")
"""Arguments of `encode_prompt` that a pipeline's call passes on, by its own defaults."""


OUTPUTS: Mapping[str, PromptOutputs] = {
    **{name: family.encoded for family in FAMILIES.values() for name in family.pipelines},
    "LatentConsistencyModelPipeline": StableDiffusion.encoded,
}
"""What pipelines make of a prompt, by their class."""


class PromptEncoder:
    """The text encoders of a stock pipeline's folder, without its network and VAE.

    Args:
        folder: as `save_pretrained` writes it.
        device: where they compute.
        dtype: of their weights while they compute.
        max_tokens: of a prompt, where the pipeline's call has a max_sequence_length; its default, where not given.

    Raises:
        CheckpointError: with one line, where it is no pipeline of a known family, or a part is missing.
        ValueError: for max_tokens where the tokenizer alone decides.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_tokens: int | None = None,
    ) -> None:
        index = _index(folder)
        self.folder, self.name, self.device = folder, str(index["_class_name"]), torch.device(device)
        self.dtype = str(dtype)
        self.family = OUTPUTS[self.name]
        self._pipeline = _loaded(folder, index, dtype)
        self._pipeline.to(self.device)
        self.settings = self._called_with()
        if max_tokens is not None:
            if "max_sequence_length" not in self.settings or max_tokens < 1:
                raise ValueError(
                    f"{self.name} takes max_tokens >= 1 where it has a max_sequence_length: got {max_tokens}"
                )
            self.settings["max_sequence_length"] = max_tokens

    def identity(self) -> str:
        """What tells these encoders from others: `encoder_identity` of their folder."""
        return encoder_identity(self.folder)

    def limits(self) -> dict[str, int]:
        """Tokens that a prompt may have, by the name of the tokenizer; the encoders cut what is longer."""
        limits = {name: int(getattr(self._pipeline, name).model_max_length) for name in self._tokenizers}
        longest = self.settings.get("max_sequence_length")
        return limits | ({} if longest is None else {self._tokenizers[-1]: int(longest)})  # CLIP's own length is fixed

    def cut(self, prompts: Sequence[str]) -> dict[str, int]:
        """How many prompts are longer than each tokenizer takes, by its name."""
        found = {}
        for name, limit in self.limits().items():
            tokens = getattr(self._pipeline, name)(list(prompts), truncation=False, verbose=False).input_ids
            found[name] = sum(len(ids) > limit for ids in tokens)
        return found

    @property
    def _tokenizers(self) -> list[str]:
        names = [name for name in self._pipeline.components if name.startswith("tokenizer")]
        return sorted(name for name in names if getattr(self._pipeline, name) is not None)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the network takes for these prompts, batch first, on the CPU; a mask is int64 [B, L]."""
        return self._named(self._ask(list(prompts), False), self.family.outputs)

    @torch.no_grad()
    def null(self) -> dict[str, Tensor]:
        """The same for "no prompt", B = 1: as the pipeline has it where no negative prompt is given."""
        if not self.family.null:
            return self.encode([""])
        return self._named(self._ask([""], True), self.family.null)

    def _ask(self, prompts: list[str], guided: bool) -> Any:
        takes = inspect.signature(self._pipeline.encode_prompt).parameters
        given = {
            **dict.fromkeys(("prompt_2", "prompt_3")),
            "prompt": prompts,
            "device": self.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": guided,
            **self.settings,
        }
        return self._pipeline.encode_prompt(**{name: value for name, value in given.items() if name in takes})

    def _called_with(self) -> dict[str, Any]:
        """The arguments that the pipeline's call passes to `encode_prompt` by default."""
        takes = inspect.signature(self._pipeline.encode_prompt).parameters
        defaults = inspect.signature(type(self._pipeline).__call__).parameters
        return {name: defaults[name].default for name in _SETTINGS if name in takes and name in defaults}

    def _named(self, returned: Any, places: Mapping[str, int]) -> dict[str, Tensor]:
        mask = self.family.mask
        found: dict[str, Tensor] = {}
        for name, place in places.items():
            value = returned[place]
            if isinstance(value, list):  # Z-Image: each prompt by itself
                found[str(mask)] = _padded([torch.ones(len(one), dtype=torch.int64) for one in value])
                value = _padded(value)
            if value is None:  # Qwen-Image: a mask of all tokens
                value = torch.ones(next(iter(found.values())).shape[:2])
            found[name] = (value.long() if name == mask else value).cpu()
        return found


def encoder_identity(folder: Path) -> str:
    """A fingerprint of the tokenizers and text encoders in a pipeline's folder: their configurations and weights.

    Equal identities make equal embeddings. Files are read, and nothing is built; that takes about as long as copying
    them.

    Raises:
        CheckpointError: as of `PromptEncoder`.
    """
    told: dict[str, Any] = {"pipeline": _index(folder)["_class_name"]}
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and path.name in _parts(_index(folder))):
        for path in sorted(path for path in part.iterdir() if path.is_file()):
            name = f"{part.name}/{path.name}"
            if path.name == "config.json":
                told[name] = {k: v for k, v in read_json(path).items() if k not in _OF_OTHERS}
            elif path.suffix == ".safetensors":
                told |= _tensors_of(path, part.name)
            elif part.name.startswith("tokenizer") and path.suffix in (".json", ".txt", ".model"):
                told[name] = fingerprint([path.read_bytes().hex()])
    return fingerprint(told, letters=32)


def _tensors_of(path: Path, part: str) -> dict[str, str]:
    """A fingerprint of each tensor of a file; which file a tensor lies in does not matter."""
    try:
        with safe_open(path, framework="pt") as opened:
            return {f"{part}.{name}": fingerprint(None, {"": opened.get_tensor(name)}) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: download it again") from error


def _parts(index: Mapping[str, Any]) -> list[str]:
    """Names of the tokenizers and text encoders of a pipeline, as far as it has them."""
    found = [name for name in index if name.startswith(("tokenizer", "text_encoder"))]
    return [name for name in found if isinstance(index[name], list) and index[name][:1] != [None]]


def _index(folder: Path) -> dict[str, Any]:
    index = read_json(folder / "model_index.json", "the index of a pipeline as diffusers saves it")
    name = index.get("_class_name")
    if name not in OUTPUTS:
        raise CheckpointError(
            f"{folder} is a {brief(name)}: prompts are encoded for {', '.join(OUTPUTS)}; name one of these pipelines"
        )
    parts = _parts(index)
    for kind in ("tokenizer", "text_encoder"):
        if not any(part.startswith(kind) for part in parts):
            raise CheckpointError(
                f"{folder} has no {kind}: expected the whole pipeline, got {brief(parts)}; download it"
            )
    for part in parts:
        if index[part][0] != "transformers" or not str(index[part][1]).isidentifier():
            raise CheckpointError(f"{folder}: {part} is a class of transformers: got {brief(index[part])}")
        if not (folder / part).is_dir():
            raise CheckpointError(f"{folder} lacks its folder {part}: download it")
    return index


def _loaded(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    try:
        import diffusers  # text-to-image pipelines take seconds to import
        import transformers
    except ImportError as error:
        raise CheckpointError(
            f"encoding prompts needs transformers: pip install transformers ({reason(error)})"
        ) from error
    kept = {*_parts(index), "scheduler"}
    left_out = {name: None for name, value in index.items() if isinstance(value, list) and name not in kept}
    levels = diffusers.logging.get_verbosity(), transformers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    try:
        return getattr(diffusers, index["_class_name"]).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, **left_out
        )
    except (OSError, *BUILD_ERRORS) as error:
        raise CheckpointError(f"{folder}: its text encoders cannot be loaded: {reason(error)}") from error
    finally:
        diffusers.logging.set_verbosity(levels[0])
        transformers.logging.set_verbosity(levels[1])


def _padded(parts: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
