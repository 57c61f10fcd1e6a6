"""Reading a run's .ckpt without executing anything (weights_only), and the record of a model in it."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from fdistill.core.distributed import gather_objects, rank, world_size
from fdistill.core.presets import checkpoints
from fdistill.core.weight_files import CheckpointError, as_one_line, load_weights
from fdistill.io.shards import SHARDS, Shards
from fdistill.io.strangers import run_checkpoint
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.models.vae import Decoder
from fdistill.sampling import Sampler
from fdistill.sampling.generator import GenerativeModel

RECORD = "fdistill"
"""Key of a run checkpoint, and stem of a JSON file in an exported folder, under which the model is described."""

OWN_WEIGHTS = "denoiser.safetensors"  # in an exported folder that is none of stock diffusers
STOCK_PIPELINE = "ConsistencyModelPipeline"
AVERAGE = "ema.average."  # beginning of the names of a generator's weights in a run
GUIDE = "guide."  # beginning of the names of a guide's weights


def read_run_checkpoint(path: Path | str, whole: bool = True, together: bool = False) -> dict[str, Any]:
    """The whole dictionary of a .ckpt file, on the CPU; of a sharded run's with the tensors of the folder beside it.

    torch.load checks no sum of the bytes of a tensor, and one flipped bit would pass for a weight. So every member of
    the archive is read once more and held against its CRC-32 before it is loaded, about half of what loading takes.

    Args:
        path: of the file.
        whole: whether tensors of that folder are read too; else they have a shape and no numbers.
        together: whether all ranks of the job read it now: then each checks its share of the members.

    Raises:
        CheckpointError: if the file is missing, truncated, altered in a single bit, no checkpoint, or would have to
            execute code.
    """
    path = Path(path)
    if not path.is_file():
        inside = run_checkpoint(path)
        remedy = (
            f"check the path, or name one of {', '.join(checkpoints())}"
            if inside is None
            else f"give {inside}, which is in this folder of a run"
        )
        raise CheckpointError(f"no checkpoint at {path}: expected a .ckpt file or an exported folder; {remedy}")
    fault = _fault_of_archive(path, slice(rank(), None, world_size()) if together else slice(None))
    if together:
        fault = next((found for found in gather_objects(fault) if found), None)
    if fault is not None:
        raise CheckpointError(f"{path} is {fault}: {_instead_of(path)}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds objects other than tensors and plain values, which are never executed: "
            f"{_instead_of(path)}"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged: {_instead_of(path)}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        got = _got(checkpoint)
        raise CheckpointError(f"{path} is no Lightning checkpoint: expected a state_dict inside, got {got}")
    return Shards(checkpoint, path).whole(checkpoint) if whole and SHARDS in checkpoint else checkpoint


def _got(content: Any) -> str:
    """What a file holds in place of a checkpoint, and the way for a network's weights."""
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        return f"a {type(content).__name__}; give the checkpoint of a run"
    return "tensors; save them as safetensors, and fdistill import FILE.safetensors TARGET --config FILE.yaml"


def _fault_of_archive(path: Path, share: slice = slice(None)) -> str | None:
    """What is wrong with a zip archive that torch.save wrote; None where every member has the bytes that were written.

    `share` picks among the members by size, so that the ranks of a job have equally much to read.

    A spoiled directory makes zipfile raise whatever its bytes happen to mean. torch leaves a tensor unread that the
    directory calls a folder (external attributes; torch.save writes none).
    """
    try:
        if not zipfile.is_zipfile(path):
            return "truncated or no checkpoint"
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.file_size)
            broken = next((member.filename for member in members[share] if not _is_intact(archive, member)), None)
            odd = [member.filename for member in members if member.external_attr]
    except Exception as error:
        return f"damaged, its directory cannot be read ({type(error).__name__})"
    if broken is not None:
        return f"damaged, the CRC-32 of {broken!r} is not the one written"
    return f"damaged, {odd[0]!r} is marked as no file" if odd else None


def _is_intact(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as content:
            while content.read(2**20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _instead_of(path: Path) -> str:
    """What to do without a checkpoint: take the newest other one beside it."""
    others = [other for other in path.parent.glob("*.ckpt") if other != path and _fault_of_archive(other) is None]
    if not others:
        return "there is no other beside it; take a copy, or start afresh in another folder"
    return f"take an earlier one, {max(others, key=lambda other: other.stat().st_mtime)}"


def model_record(model: GenerativeModel) -> dict[str, Any]:
    """Plain values from which `model_from_record` rebuilds the model around its weights."""
    return {
        "kind": model.kind,
        "denoiser": model.denoiser.spec(),
        "sigmas": model.sigmas.tolist(),
        "guidance": Guidance.of(model.guidance).plain(),
        "facts": model.facts,
        "sampler": None if model.sampler is None else model.sampler.spec(),
        "decoder": None if model.decoder is None else str(model.decoder.folder.resolve()),
        "start": model.start,
        "temperature": model.temperature,
    }


def model_weights(model: GenerativeModel) -> dict[str, torch.Tensor]:
    """The denoiser's tensors and, under names that begin with "guide.", those of its guide; on the CPU."""
    tensors, guide = dict(model.denoiser.state_dict()), Guidance.of(model.guidance).guide
    if guide is not None:
        tensors |= {f"{GUIDE}{name}": value for name, value in guide.state_dict().items()}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def model_from_record(record: dict[str, Any], weights: dict[str, torch.Tensor], source: Path) -> GenerativeModel:
    """Rebuild the model that `record` describes and load `weights` into its denoiser and guide.

    A record without a sampler, a start or a temperature is of a time when every teacher's was Heun, every start sigma
    z, and every temperature 1. The decoder of latents stays in its folder, which the record names; a relative name is
    one inside `source`.

    Raises:
        CheckpointError: if the record is incomplete or the weights do not fit.
    """
    with as_one_line(f"the record of {source} describes no model"):
        denoiser = Denoiser.from_spec(record["denoiser"])
        sigmas = torch.tensor(record["sigmas"], dtype=torch.float64)
        guidance = Guidance.from_plain(record["guidance"])
        sampler = None if record.get("sampler") is None else Sampler.from_spec(record["sampler"])
        decoder = None if record.get("decoder") is None else Decoder(Path(source) / record["decoder"])
        how: dict[str, Any] = {"sampler": sampler, "decoder": decoder, "start": record.get("start", "sigma")}
        how["temperature"] = record.get("temperature", 1.0)
        model = GenerativeModel(denoiser.eval(), record["kind"], sigmas, guidance, record["facts"], **how)
    guide = Guidance.of(guidance).guide
    if guide is not None:
        its = {name.removeprefix(GUIDE): value for name, value in weights.items() if name.startswith(GUIDE)}
        load_weights(guide, its, f"{source} (guide)")
        weights = {name: value for name, value in weights.items() if not name.startswith(GUIDE)}
    load_weights(denoiser, weights, source)
    return model
