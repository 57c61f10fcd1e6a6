"""From latents to images and back: the VAE of a latent diffusion model, in the form that diffusers saves."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from fdistill.core.build import build_stock, build_with_weights, known_config
from fdistill.core.fingerprints import fingerprint
from fdistill.core.weight_files import (
    BUILD_ERRORS,
    CheckpointError,
    brief,
    check_finite_weights,
    checked_number,
    read_config,
    read_stock_weights,
    reason,
    shown,
)

if TYPE_CHECKING:
    from diffusers import ModelMixin

_CLASSES = (
    *("AutoencoderKL", "VQModel", "AutoencoderTiny"),
    *("AutoencoderDC", "AutoencoderKLQwenImage", "AutoencoderKLFlux2"),
)
_OF_VIDEO, _PACKED = "AutoencoderKLQwenImage", "AutoencoderKLFlux2"
_AT_ONCE = 16  # images that are decoded together, of 256 x 256 pixels or smaller
_LARGEST_SIDE = 4096  # of an image; no weight depends on it
_WRITTEN_ONLY = {"AutoencoderTiny": "block_out_channels"}  # of its own making: the class does not take it back


class Decoder:
    """A VAE in a folder, whose weights are read when the first latent or image comes.

    A model sees latents of about one scale, which its VAE undoes: it decodes latents / scaling_factor + shift_factor,
    with latents_std and latents_mean by channel as further factor and shift where its configuration has them.
    AutoencoderKLFlux2 has them as statistics of batches, of latents whose 2 x 2 squares are channels.
    """

    def __init__(self, folder: Path | str, scaling: dict[str, Any] | None = None) -> None:
        """Args:
        folder: with config.json and weights of a VAE of diffusers, one of `_CLASSES`.
        scaling: scaling_factor, shift_factor, latents_std and latents_mean instead of those of config.json.
        """
        self.folder, self._scaling = Path(folder), scaling or {}
        self._device = torch.device("cpu")
        self._scale_of: dict[torch.device, tuple[Tensor, Tensor]] = {}  # copied to a device once, which waits for it

    def to(self, device: torch.device | str) -> "Decoder":
        """Where to decode; the VAE moves when it is used."""
        self._device = torch.device(device)
        return self

    @functools.cached_property
    def vae(self) -> "ModelMixin":
        """The whole VAE, in evaluation mode.

        Raises:
            CheckpointError: if it is missing, broken, or of a class that is not known here.
        """
        config = read_config(self.folder / "config.json", "the VAE of these latents")
        kind = config.get("_class_name")
        if kind not in _CLASSES:
            raise CheckpointError(f"{self.folder} holds a {shown(kind)}: expected a VAE, one of {', '.join(_CLASSES)}")
        import diffusers  # seconds of imports, which models of pixels do without

        plain = {name: value for name, value in config.items() if name[:1] != "_" and name != _WRITTEN_ONLY.get(kind)}
        plain = known_config(getattr(diffusers, kind), plain, self.folder / "config.json")
        weights = read_stock_weights(self.folder)
        counts = {name for name in weights if name.endswith("num_batches_tracked")}
        check_finite_weights({name: weights[name] for name in weights.keys() - counts}, self.folder)
        try:
            build = functools.partial(build_stock, getattr(diffusers, kind), plain | self._scaling)
            vae = build_with_weights(build, weights, self.folder)
            _check_scaling(vae.config)
        except CheckpointError:
            raise
        except BUILD_ERRORS as error:
            raise CheckpointError(f"{self.folder}/config.json: {reason(error)}") from error
        return vae.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, latents: Tensor, batch_size: int | None = None) -> Tensor:
        """Images in [-1, 1], [B, C, H, W] float32 on the CPU.

        Args:
            latents: [B, C, h, w], as the model makes them.
            batch_size: images at once; they do not depend on it. As many as 16 of 256 x 256 pixels have, at most 16,
                where not given.

        Raises:
            CheckpointError: where the VAE is, see `vae`, or its images would be larger than 4096 pixels a side.
        """
        vae, (factor, shift) = self.vae.to(self._device), self.scale
        side = max(latents.shape[2:]) * self.factor
        if side > _LARGEST_SIDE:
            raise CheckpointError(
                f"{self.folder} makes images of at most {_LARGEST_SIDE:,} pixels a side: got {side:,}"
            )
        size = batch_size or max(1, min(_AT_ONCE, _AT_ONCE * 256**2 // side**2))
        parts, dtype = (latents.float().cpu() / factor + shift).split(size), next(vae.parameters()).dtype
        decoded = (self._decoded(part.to(self._device, dtype)) for part in parts)
        return torch.cat([images.clamp(-1, 1).float().cpu() for images in decoded])

    def differentiable(self, latents: Tensor) -> Tensor:
        """Images [B, C, H, W] with a graph to the latents [B, C, h, w], on their device, and not clamped."""
        vae = self.vae.to(latents.device)
        if latents.device not in self._scale_of:
            factor, shift = self.scale
            self._scale_of[latents.device] = factor.to(latents.device), shift.to(latents.device)
        factor, shift = self._scale_of[latents.device]
        raw = latents / factor + shift
        return self._decoded(raw.to(next(vae.parameters()).dtype)).to(latents.dtype)

    def _decoded(self, raw: Tensor) -> Tensor:
        """Images of the VAE's own latents, which of FLUX.2 are packed and of Qwen-Image one frame of a video."""
        vae = cast(Any, self.vae)
        if type(vae).__name__ == _PACKED:
            raw = functional.pixel_shuffle(raw, 2)
        if type(vae).__name__ == _OF_VIDEO:
            return vae.decode(raw[:, :, None]).sample[:, :, 0]
        return vae.decode(raw).sample

    @property
    def factor(self) -> int:
        """Side of an image for each unit of the latents' side."""
        config, kind = self.vae.config, type(self.vae).__name__
        levels = config.get("block_out_channels") or config.get("encoder_block_out_channels") or config.get("dim_mult")
        return 2 ** (len(levels) - 1 + (kind == _PACKED))  # each level but one halves it

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """Factor and shift by channel, [C, 1, 1] or [1, 1, 1]: the VAE's own latents are latents / factor + shift."""
        config = self.vae.config
        if type(self.vae).__name__ == _PACKED:
            norm = cast(Any, self.vae).bn
            std = (norm.running_var.cpu() + config.batch_norm_eps).sqrt()
            return 1 / std[:, None, None], norm.running_mean.cpu()[:, None, None]
        std, mean = (_by_channel(config.get(name), of) for name, of in (("latents_std", 1.0), ("latents_mean", 0.0)))
        return config.get("scaling_factor", 1.0) / std, mean + (config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents as a model sees them: their mean and, of an AutoencoderKL, their standard deviation given the image.

        Both are [B, C, h, w] float32 on the CPU.

        Args:
            images: [B, C, H, W] in [-1, 1].

        Raises:
            CheckpointError: where the VAE is, see `vae`, or the latents are not finite.
        """
        (factor, shift), kind = self.scale, type(self.vae).__name__
        images = images.to(self._device)
        coded = self.vae.to(self._device).encode(images[:, :, None] if kind == _OF_VIDEO else images)
        posterior = getattr(coded, "latent_dist", None)
        raw: tuple[Any, ...] = (coded[0],) if posterior is None else (posterior.mean, posterior.std)
        if kind == _PACKED:
            raw = tuple(functional.pixel_unshuffle(each, 2) for each in raw)
        raw = tuple((each[:, :, 0] if kind == _OF_VIDEO else each).float().cpu() for each in raw)
        mean = (raw[0] - shift) * factor
        std = None if posterior is None else raw[1] * factor.abs()
        if not (mean.isfinite().all() and (std is None or std.isfinite().all())):
            raise CheckpointError(f"{self.folder} makes latents that are not finite: use another VAE")
        return mean, std

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of its configuration, scaling included, and its weights."""
        plain = {name: value for name, value in dict(self.vae.config).items() if name[:1] != "_"}
        return fingerprint(json.loads(json.dumps(plain, default=str)), self.vae.state_dict())

    def save(self, folder: Path) -> None:
        """Write the VAE as diffusers does, its weights as safetensors.

        Raises:
            OSError: in one line, where it cannot be written.
        """
        try:
            self.vae.cpu().save_pretrained(folder, safe_serialization=True)
        except SafetensorError as error:  # of a full disk, too
            raise OSError(
                f"cannot write the VAE to {folder}: {reason(error)}; name a place with room for it"
            ) from error
        for weights in folder.glob("*.safetensors"):  # safetensors lets nobody but the owner read
            weights.chmod((folder / "config.json").stat().st_mode)


def _by_channel(values: Sequence[float] | None, otherwise: float) -> Tensor:
    """[C, 1, 1], or a number where there are none."""
    return torch.tensor(otherwise if values is None else list(values)).reshape(-1, 1, 1)


def _check_scaling(config: Any) -> None:
    checked_number(abs(config.get("scaling_factor", 1.0)), "the size of scaling_factor", 1e-6, 1e6)
    checked_number(config.get("shift_factor") or 0, "shift_factor", -1e6, 1e6)
    channels = config.get("latent_channels") or config.get("z_dim")
    for name in ("latents_std", "latents_mean"):
        values = config.get(name)
        if values is None:
            continue
        if not isinstance(values, list | tuple) or len(values) not in (1, channels):
            raise ValueError(f"{name} has one number for each of {channels} channels: got {brief(values)}")
        for value in values:
            checked_number(value, name, -1e6, 1e6)
