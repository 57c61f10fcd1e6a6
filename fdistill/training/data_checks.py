"""Whether a run's data fit its networks and its turns, said before the first one."""

import inspect

from fdistill.data import GenerativeDataModule
from fdistill.models.condition import declared, fits
from fdistill.models.denoiser import Denoiser


def check_divides(accumulate: int, batch_size: int) -> None:
    """Raises ValueError where a batch has no such number of equal parts."""
    if batch_size % accumulate:
        raise ValueError(
            f"a turn splits its batch into accumulate equal micro-batches: expected a divisor of {batch_size}, got "
            f"{accumulate}; change model.accumulate or data.batch_size"
        )


def check_fits(name: str, denoiser: Denoiser, data: GenerativeDataModule) -> None:
    """Raises ValueError where a network does not fit the data's shape or classes."""
    if denoiser.sample_shape != tuple(data.sample_shape):
        raise ValueError(
            f"{name} makes samples of {denoiser.sample_shape}, the data has {tuple(data.sample_shape)}: "
            f"{_mending_options(name, denoiser, data)}"
        )
    if not fits(denoiser.takes, data.takes):
        raise ValueError(
            f"{name} takes {declared(denoiser.takes)}, the data has {declared(data.takes)}: "
            "expected the same, or an unconditional network"
        )


def _mending_options(name: str, denoiser: Denoiser, data: GenerativeDataModule) -> str:
    """Which options make the shape of a network and that of the data the same, in words."""
    one, other = denoiser.sample_shape, tuple(data.sample_shape)
    named = {"sample_shape"}
    if one[:1] != other[:1]:
        named |= {"channels", "in_channels", "image_channels", "dim"}
    if one[1:] != other[1:]:
        named |= {"resolution", "sample_size"}
    owners = {"data": data, **({"model.network": denoiser.network} if name == "denoiser" else {})}
    found = [f"{place}.{n}" for place, owner in owners.items() for n in inspect.signature(type(owner)).parameters]
    options = [option for option in found if option.rpartition(".")[2] in named]
    return f"change {' or '.join(options)}" if options else "give data of that shape, or another teacher"
