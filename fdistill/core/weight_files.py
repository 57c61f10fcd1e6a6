"""Weights and configurations from files that others wrote: nothing is executed, and every error is one line."""

import json
import os
import re
import reprlib
import stat
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fdistill.core.weight_names import HOLDERS, several_holders, todays_name, unwrapped

_STOCK_WEIGHTS = "diffusion_pytorch_model"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_OF_EMA = (  # what EMAModel of diffusers adds to the configuration of its network
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
)
_LARGEST_JSON = 2**26  # bytes; an index of a million tensors has fewer
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 200

BUILD_ERRORS = (  # what a class of others raises where its arguments are nonsense
    *(TypeError, ValueError, LookupError, ArithmeticError, AttributeError, NameError, RuntimeError, AssertionError),
    MemoryError,
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line."""


def shown(text: Any, most: int = 200) -> str:
    """Text of a file for a message: at most so many characters, those that a terminal obeys escaped."""
    text = text if isinstance(text, str) else _BRIEF.repr(text)
    kept = text if len(text) <= most else text[:most] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in kept)


def brief(value: Any) -> str:
    """A value of a file for a message, like `shown`, with the quotation marks of a text."""
    return shown(_BRIEF.repr(value), 400)


def reason(error: BaseException) -> str:
    """What an error that is not ours says, in at most 300 characters of one line."""
    return shown(" ".join(str(error)[:2000].split()) or type(error).__name__, 300)


def is_lfs_pointer(beginning: bytes) -> bool:
    """Whether a file that begins so is what Git LFS leaves in place of one that was not downloaded."""
    return beginning.startswith(b"version https://git-lfs")


def checked_number(value: Any, name: str, low: float, high: float, whole: bool = False) -> Any:
    """`value`, if it is a number in [low, high].

    Raises:
        ValueError: if it is of another type, outside, or not whole where it should be.
    """
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not low <= value <= high:
        what = "an integer" if whole else "a number"
        raise ValueError(f"{name} is {what} from {low:,.7g} to {high:,.7g}: got {brief(value)}")
    return value


@contextmanager
def as_one_line(source: object) -> Iterator[None]:
    """Inside, what a class raises where its arguments are nonsense becomes a CheckpointError that names the source."""
    try:
        yield
    except CheckpointError:
        raise
    except BUILD_ERRORS as error:
        raise CheckpointError(f"{source}: {reason(error)}") from error


def file_size(path: Path, missing: str = "check the path") -> int:
    """Bytes of a file that can be read to its end.

    Args:
        path: of the file.
        missing: what to expect or to do where there is none.

    Raises:
        CheckpointError: if there is none, it is a folder, a pipe or a device, or not ours to read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path} is no regular file: expected one, got a folder, pipe or device")
        if not os.access(path, os.R_OK):
            raise PermissionError
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"there is no {path}: {missing}") from error
    except PermissionError as error:
        raise CheckpointError(f"{path}: permission denied; name a file that you may read") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; name another file") from error
    return found.st_size


def check_finite_weights(
    weights: dict[str, torch.Tensor], source: Path | str, last_row_is_nan: Collection[str] = ()
) -> None:
    """Weights are finite numbers of 16, 32 or 64 bits.

    Args:
        weights: by name.
        source: for the message.
        last_row_is_nan: tables whose last row nobody has trained.

    Raises:
        CheckpointError: with the names of the first three that are not.
    """
    misfits = [f"{shown(name)} of {value.dtype}" for name, value in weights.items() if value.dtype not in _FLOATS]
    misfits += [
        f"{shown(name)} not finite"
        for name, value in weights.items()
        if value.dtype in _FLOATS and not (value[:-1] if name in last_row_is_nan else value).isfinite().all()
    ]
    if misfits:
        raise CheckpointError(
            f"{source}: weights are finite numbers of 16, 32 or 64 bits, {len(misfits)} tensors are not: "
            f"{'; '.join(misfits[:3])}; save or download it again"
        )


def load_weights(module: torch.nn.Module, weights: dict[str, torch.Tensor], source: Path | str) -> None:
    """load_state_dict whose error is one line that names the first misfits.

    Raises:
        CheckpointError: if a tensor is missing, left over, or has another shape.
    """
    check_fits(module, weights, source)
    module.load_state_dict(weights)


def check_fits(module: torch.nn.Module, weights: dict[str, torch.Tensor], source: Path | str) -> None:
    """Raises CheckpointError, like `load_weights`, where the weights do not fill the module."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    misfits = [(name, "missing") for name in expected.keys() - found.keys()]
    misfits += [(name, "unexpected") for name in found.keys() - expected.keys()]
    misfits += [
        (name, f"expected {expected[name]}, got {found[name]}")
        for name in expected.keys() & found.keys()
        if expected[name] != found[name]
    ]
    if misfits:
        first = "; ".join(f"{shown(name)} {what}" for name, what in sorted(misfits)[:3])
        raise CheckpointError(
            f"{source} is a checkpoint of another architecture ({len(misfits)} tensors differ): {first}"
        )


def read_json(path: Path, what: str = "a file of an exported model") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        CheckpointError: if it is missing, broken, or larger than 64 MiB.
    """
    try:
        size = file_size(path, f"expected {what}; check the path")
        if size > _LARGEST_JSON:
            raise CheckpointError(f"{path} is no {what}: expected at most {_LARGEST_JSON:,} bytes, got {size:,}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable JSON: expected {what}, got an error: {reason(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object: expected {what}, got {type(value).__name__}")
    return value


def read_config(path: Path, what: str) -> dict[str, Any]:
    """The configuration of a network, without what diffusers' EMAModel writes there of its averaging.

    Raises:
        CheckpointError: if it is missing or broken.
    """
    config = read_json(path, what)
    is_average = {"decay", "optimization_step"} <= config.keys()
    return {name: value for name, value in config.items() if name not in _OF_EMA} if is_average else config


def read_safetensors(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file by name.

    Raises:
        CheckpointError: if it is missing or broken, with the remedy.
    """
    try:
        file_size(path, f"the folder is incomplete; {remedy}")
        return load_file(path)
    except CheckpointError:
        raise
    except (SafetensorError, OSError, *BUILD_ERRORS) as error:  # the latter at a type that this torch does not have
        raise CheckpointError(
            f"{path} is {_in_place_of(path, 'truncated or no safetensors file')}: {remedy}"
        ) from error


def read_stock_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that diffusers' save_pretrained wrote into `folder`, of one file or of several shards.

    Safetensors come before a .bin, which is read with weights_only, and both before a variant like fp16, of which there
    may be one. Names are those of today's diffusers without wrappers (`unwrapped`).

    Raises:
        CheckpointError: if there are none, or they are broken, of several networks or of several variants.
    """
    remedy = "save or download it again"
    weights: dict[str, torch.Tensor] = {}
    for name in _stock_files(folder, remedy):
        read = read_safetensors if name.endswith(".safetensors") else _read_pickled
        weights |= read(folder / name, remedy)
    check_one_network(weights, folder)
    return {todays_name(name): value for name, value in unwrapped(weights).items()}


def check_one_network(weights: dict[str, torch.Tensor], source: Path) -> None:
    """Raises CheckpointError where the names of the tensors say that they are of several networks."""
    several = several_holders(weights)
    if several:
        raise CheckpointError(
            f"{source} holds the tensors of several networks ({', '.join(several)}): expected one; save the one to "
            "take, the average (ema) where there is one"
        )


def _stock_files(folder: Path, remedy: str) -> list[str]:
    """Names of the files that hold the tensors of one network: of one suffix, and plain ones before a variant."""
    groups: dict[tuple[bool, bool, str], list[str]] = {}
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in present:
        stem, *parts = _SHARD.sub("", name).split(".")
        kind = next((kind for kind in ("safetensors", "bin") if kind in parts), None)
        if stem == _STOCK_WEIGHTS and kind and (parts[-1] == kind or {"index", "json"} <= set(parts)):
            variant = ".".join(part for part in parts if part not in (kind, "index", "json"))
            groups.setdefault((variant != "", kind == "bin", variant), []).append(name)
    if not groups:
        raise CheckpointError(
            f"{folder} holds no weights: expected {_STOCK_WEIGHTS}.safetensors, got {brief(present[:5])}; {remedy}"
        )
    first = min(groups)
    variants = sorted({variant for _, _, variant in groups})
    if first[0] and len(variants) > 1:
        raise CheckpointError(f"{folder} holds the variants {', '.join(variants)}: expected one; leave one there")
    names = groups[first]
    index = [name for name in names if name.endswith(".json")]
    if index:
        return _shards(folder / index[0], ".bin" if first[1] else ".safetensors")
    numbers = {match.groups() for match in map(_SHARD.search, names) if match}
    whole = [name for name in names if not _SHARD.search(name)]
    if not whole and len(numbers) != int(max(numbers)[1]):
        raise CheckpointError(f"{folder} holds {len(numbers)} of {int(max(numbers)[1])} shards: {remedy}")
    return whole[:1] or names


def _shards(index: Path, suffix: str) -> list[str]:
    """Names of the files beside an index that it divides the tensors among."""
    placed = read_json(index, "the index of a network's shards").get("weight_map")
    names = list(placed.values()) if isinstance(placed, dict) else []
    if not names or not all(_is_beside(name, suffix) for name in names):
        raise CheckpointError(f"{index}: weight_map names the file of each tensor, beside it: got {brief(placed)}")
    return sorted(set(names))


def _is_beside(name: Any, suffix: str) -> bool:
    return isinstance(name, str) and name.isprintable() and name == f"{Path(name).stem}{suffix}"


def _in_place_of(path: Path, otherwise: str) -> str:
    """What lies where a file of weights should."""
    with path.open("rb") as file:
        return "a pointer of Git LFS, git lfs pull fetches it" if is_lfs_pointer(file.read(64)) else otherwise


def _read_pickled(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    try:
        file_size(path, f"the folder is incomplete; {remedy}")
        with warnings.catch_warnings(action="ignore"):  # of forms that are refused below
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch's reader of pickles raises whatever the bytes lead it to
        raise CheckpointError(
            f"{path} is {_in_place_of(path, 'damaged, or a pickle of more than tensors, which is never executed')}: "
            "convert it to safetensors where you trust it (save_pretrained of diffusers does)"
        ) from error
    while isinstance(weights, dict) and len(held := [n for n in weights if n in HOLDERS and _is_held(weights[n])]) == 1:
        weights = weights[held[0]]  # what a trainer saved beside its counts
    if not isinstance(weights, dict) or not all(isinstance(n, str) and _is_plain(v) for n, v in weights.items()):
        raise CheckpointError(f"{path} holds no tensors by name: convert it to safetensors where you trust it")
    return weights


def _is_held(value: Any) -> bool:
    return isinstance(value, dict) and len(value) > 0


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor of numbers in memory: not sparse, quantised, or of shapes alone."""
    is_tensor = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_quantized
    return is_tensor and value.device.type == "cpu"
