"""Snapshots of power-function averages on disk: written during a run, combined into any length afterwards.

One safetensors file per moment holds the parameters of every tracked length, named `<length>/<parameter>`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fdistill.core.atomic_files import atomic_write, remove_left_overs
from fdistill.io.checkpoints import CheckpointError
from fdistill.models.adapters import own_parameters
from fdistill.sampling.generator import GenerativeModel
from fdistill.training.averaging.power_ema import Combination, Profile, combine

FOLDER = "averages"
"""In the run folder."""
Storage = Literal["float32", "float16"]

_SUFFIX = ".safetensors"


def write_snapshot(
    folder: Path, averages: Mapping[float, Mapping[str, Tensor]], updates: int, storage: Storage = "float32"
) -> Path:
    """Write the averages after an update as one file, whole or not at all.

    Args:
        folder: of a run's snapshots; made where it is missing.
        averages: parameters by name for each length.
        updates: of which they are averages, >= 1.
        storage: type of the numbers in the file.

    Raises:
        ValueError: where a number is not finite in this type.
        OSError: if it cannot be written.
    """
    dtype = getattr(torch, storage)
    held = {
        f"{length}/{name}": value.detach().to("cpu", dtype).contiguous()
        for length, parameters in averages.items()
        for name, value in parameters.items()
    }
    broken = [name for name, value in held.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"averages are stored as finite {storage} numbers: got others in {broken[0]} at update {updates}; "
            "store float32 (storage of PowerAverages), or look for what diverged"
        )
    return atomic_write(folder / f"{updates:09d}{_SUFFIX}", save(held))


def drop_later(folder: Path, updates: int) -> None:
    """Remove the snapshots of a folder that were taken after an update, of a branch that is left, and half-written."""
    remove_left_overs(folder)
    for file in _files(folder):
        if int(file.stem) > updates:
            file.unlink()


class Snapshots:
    """The snapshots of one run.

    Attributes:
        profiles: what is stored, in the order of the files' updates.
        updates: of the last snapshot.
        storage: the coarsest type that is stored.
    """

    def __init__(self, folder: Path | str) -> None:
        """Reads names and facts, no weights.

        Args:
            folder: that `write_snapshot` wrote to.

        Raises:
            CheckpointError: where there are none, or a file is damaged.
        """
        self.folder = Path(folder)
        self._places: list[tuple[Path, str]] = []
        self.profiles: list[Profile] = []
        stored: set[str] = set()
        for path in _files(self.folder):
            with _opened(path) as file:
                names = list(file.keys())
                stored |= {file.get_slice(name).get_dtype() for name in names}
            lengths = sorted({name.partition("/")[0] for name in names}, key=float)
            self._places += [(path, length) for length in lengths]
            self.profiles += [Profile(float(length), int(path.stem)) for length in lengths]
        if not self.profiles:
            raise CheckpointError(
                f"{folder} holds no snapshots of averages: expected files of PowerAverages; add it to the callbacks of "
                "the run (configs/averages.yaml)"
            )
        self.updates = self.profiles[-1].updates
        self.storage: Storage = "float16" if "F16" in stored else "float32"

    def combination(self, length: float) -> Combination:
        """How the average of a length at the last snapshot is made of all of them.

        Raises:
            ValueError: where it cannot be; see `combine`.
        """
        return combine(self.profiles, Profile(length, self.updates))

    def average(self, combination: Combination) -> dict[str, Tensor]:
        """The combined parameters by name, float32; summed in float64, one file at a time.

        Raises:
            CheckpointError: where a file is damaged or of another network than the others.
        """
        sums: dict[str, Tensor] = {}
        for (path, length), weight in zip(self._places, combination.weights.tolist(), strict=True):
            with _opened(path) as file:
                names = [name for name in list(file.keys()) if name.startswith(f"{length}/")]
                values = {name.partition("/")[2]: file.get_tensor(name) for name in names}
            if sums and {n: v.shape for n, v in sums.items()} != {n: v.shape for n, v in values.items()}:
                raise CheckpointError(
                    f"{path} is of another network than the snapshots before it: remove what is left of another run"
                )
            sums = {n: sums.get(n, 0.0) + weight * value.double() for n, value in values.items()}
        return {name: value.float() for name, value in sums.items()}


@torch.no_grad()
def put_average(model: GenerativeModel, average: Mapping[str, Tensor], source: Path | str) -> None:
    """Give a model's network averaged parameters, in place; its buffers stay.

    Raises:
        CheckpointError: where they are of another network.
    """
    parameters = own_parameters(model.denoiser)
    differ = sorted(
        name
        for name in parameters.keys() | average.keys()
        if name not in parameters or name not in average or parameters[name].shape != average[name].shape
    )
    if differ:
        raise CheckpointError(
            f"the averages in {source} are of another network than the run's checkpoint ({len(differ)} tensors differ, "
            f"{differ[0]} first): remove what is left of another run"
        )
    for name, parameter in parameters.items():
        parameter.copy_(average[name])


def _files(folder: Path) -> list[Path]:
    """The snapshots of a folder, the earliest first."""
    return sorted((file for file in folder.glob(f"*{_SUFFIX}") if file.stem.isdigit()), key=lambda f: int(f.stem))


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: remove it, the other snapshots do without it") from error
