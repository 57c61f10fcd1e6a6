"""A teacher from a snapshot of EDM (arXiv 2206.00364) or EDM2 (arXiv 2312.02696), whose pickle is read as data."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fdistill.core.build import build_with_weights
from fdistill.core.spec import plain
from fdistill.core.weight_files import CheckpointError, as_one_line, brief, check_finite_weights, checked_number, shown
from fdistill.io.importing.edm_adm import adm_config, adm_weights
from fdistill.io.importing.edm_reader import Array, Inert, read_snapshot, weights_of
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import EDM2UNet, Network, SongUNet, StockUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import VPLinear
from fdistill.theory.preconditioning import EDM, EpsPrediction, Preconditioning, VEScorePrediction

_SMALLEST_STD, _LARGEST_STD = 1e-6, 1e6


def read_edm(path: Path | str) -> GenerativeModel:
    """The teacher of a network-snapshot-*.pkl: 18 Heun steps from sigma 80, as EDM samples CIFAR-10.

    Weights in half precision become float32. The uncertainty head of EDM2 and the augmentation labels of EDM, which
    sampling never uses, are left out.

    Args:
        path: a snapshot of EDM or EDM2; nothing in it is executed.

    Raises:
        CheckpointError: if it cannot be read without executing it, or holds another kind of network.
    """
    path = Path(path)
    snapshot = read_snapshot(path)
    network, preconditioning = _denoiser_parts(snapshot["ema"], path)
    state = snapshot["ema"].state
    with as_one_line(f"{path} describes no teacher"):
        facts = {
            "imported_from": shown(path.name),
            "format": f"{'EDM2' if isinstance(network, EDM2UNet) else 'EDM'} snapshot, {snapshot['ema'].name}",
            "sigma_data": _number(state, "sigma_data", _SMALLEST_STD, _LARGEST_STD, 0.5),
            **_latent_facts(snapshot.get("encoder"), network.sample_shape[0]),
        }
        lowest = max(0.002, _number(state, "sigma_min", 0, _LARGEST_STD, 0))
        highest = min(80.0, _number(state, "sigma_max", 0, math.inf, 80))
        return GenerativeModel.teacher(Denoiser(network, preconditioning), 18, lowest, highest, facts=facts)


def _denoiser_parts(ema: Inert, path: Path) -> tuple[Network, Preconditioning]:
    modules = ema.state.get("_modules")
    below = [modules.get(name) for name in ("model", "unet")] if isinstance(modules, dict) else []
    inner = next((module for module in below if isinstance(module, Inert)), None)
    if ema.name not in _PRECONDITIONINGS or inner is None or inner.name not in _NETWORKS:
        found = f"{ema.name} around {'nothing' if inner is None else inner.name}"
        raise CheckpointError(
            f"{path} holds a {shown(found)}: expected one of {', '.join(_PRECONDITIONINGS)} around one of "
            f"{', '.join(_NETWORKS)}"
        )
    # augmentation labels are zero when sampling, and filters are made from their taps
    kept = {
        name: value
        for name, value in weights_of(inner, path).items()
        if name != "map_augment.weight" and not name.endswith("resample_filter")
    }
    check_finite_weights(kept, path)
    with as_one_line(f"{path} describes a {ema.name} of a {inner.name} that is not known here"):
        preconditioning = _PRECONDITIONINGS[ema.name](ema.state)
        build, weights = _NETWORKS[inner.name](inner, {name: value.float() for name, value in kept.items()})
        return build_with_weights(build, weights, path), preconditioning


def _number(state: dict[str, Any], name: str, low: float, high: float, default: float | None = None) -> float:
    return float(checked_number(state.get(name, default), name, low, high))


def _edm(state: dict[str, Any]) -> Preconditioning:
    return EDM(_number(state, "sigma_data", _SMALLEST_STD, _LARGEST_STD))


def _vp(state: dict[str, Any]) -> Preconditioning:
    lowest, rise = _number(state, "beta_min", 1e-6, 1e3), _number(state, "beta_d", 1e-6, 1e3)
    return EpsPrediction(VPLinear(lowest, lowest + rise), time_scale=_number(state, "M", 2, 2**20) - 1)


def _ve(_state: dict[str, Any]) -> Preconditioning:
    return VEScorePrediction()


_PRECONDITIONINGS = {"EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve, "Precond": _edm}

_SIZES = {  # what EDM calls a size, and what we do
    "img_resolution": "resolution",
    "label_dim": "num_classes",
    "model_channels": "model_channels",
    "channel_mult": "channel_mult",
    "channel_mult_emb": "channel_mult_emb",
    "num_blocks": "blocks_per_level",
    "attn_resolutions": "attention_resolutions",
    "dropout": "dropout",
}
_EMBEDDINGS = {"channel_mult_noise": "channel_mult_noise"}
_STYLES = {
    "embedding_type": "embedding",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "resample_filter": "resample_filter",
}


def _song_unet(module: Inert, weights: dict[str, Tensor]) -> tuple[Callable[[], Network], dict[str, Tensor]]:
    defaults = {"channel_mult": [1, 2, 2, 2], "attn_resolutions": [16], "num_blocks": 4, "dropout": 0.1}
    options = _options(module, {**_SIZES, **_EMBEDDINGS, **_STYLES}, defaults, {})
    return lambda: SongUNet(**options), weights


def _adm(module: Inert, weights: dict[str, Tensor]) -> tuple[Callable[[], Network], dict[str, Tensor]]:
    defaults = {
        **{"model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_emb": 4, "num_blocks": 3},
        **{"attn_resolutions": [32, 16, 8], "dropout": 0.1, "label_dim": 0},
    }
    options = _options(module, _SIZES, defaults, {})
    config, last_is_none = adm_config(**options), bool(options["num_classes"] and options["knows_no_class"])
    return lambda: StockUNet(config, last_class_is_none=last_is_none), adm_weights(weights, config)


def _edm2_unet(module: Inert, weights: dict[str, Tensor]) -> tuple[Callable[[], Network], dict[str, Tensor]]:
    constants = {
        **{"label_balance": 0.5, "concat_balance": 0.5, "res_balance": 0.3, "attn_balance": 0.3},
        **{"clip_act": 256, "resample_filter": [1, 1]},
    }
    options = _options(module, {**_SIZES, **_EMBEDDINGS, "channels_per_head": "channels_per_head"}, {}, constants)
    return lambda: EDM2UNet(**options), weights


_NETWORKS = {"SongUNet": _song_unet, "DhariwalUNet": _adm, "UNet": _edm2_unet}


def _options(
    module: Inert, names: dict[str, str], defaults: dict[str, Any], constants: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of our network from those of theirs.

    Args:
        module: an inert network that remembers how it was built.
        names: their names, and ours.
        defaults: of theirs where they differ from ours.
        constants: what a network of ours has no argument for, and its value there.

    Raises:
        ValueError: for an argument that is not known here.
        TypeError: for one that is no plain value.
    """
    given = module.state.get("_init_kwargs")
    if module.state.get("_init_args") or not isinstance(given, dict):
        raise ValueError("expected the arguments that it was built with, by name")
    given = {**defaults, **plain(given)}
    channels = [given.pop(name) for name in ("in_channels", "out_channels", "img_channels") if name in given]
    if len(set(channels)) != 1:
        raise ValueError(f"a denoiser has as many output as input channels: got {brief(channels)}")
    drops_labels = (given.pop("label_dropout", 0) or 0) > 0
    given.pop("augment_dim", None)
    other = {name: value for name, value in given.items() if name not in names and constants.get(name) != value}
    if other:
        raise ValueError(f"no network here has {brief(other)}")
    ours = {names[name]: value for name, value in given.items() if name in names}
    return {**ours, "channels": channels[0], "knows_no_class": drops_labels or not ours.get("num_classes")}


def _latent_facts(encoder: Any, channels: int) -> dict[str, Any]:
    """How to decode what an EDM2 network samples, where it is no image."""
    if not isinstance(encoder, Inert) or encoder.name == "StandardRGBEncoder":
        return {}
    vae, scale, bias = (encoder.state.get(name) for name in ("vae_name", "scale", "bias"))
    if encoder.name != "StabilityVAEEncoder" or not isinstance(scale, Array) or not isinstance(bias, Array):
        raise ValueError(f"samples are images or latents of a StabilityVAEEncoder: got {shown(encoder.name)}")
    shapes = {array.values.shape for array in (scale, bias)}
    if shapes != {(channels,)} or not np.isfinite([scale.values, bias.values]).all() or not scale.values.all():
        raise ValueError(
            f"scale and bias of latents are finite, one for each of {channels} channels, and no scale is zero: "
            f"got {brief(scale.values.tolist())} and {brief(bias.values.tolist())}"
        )
    return {
        "samples": "latents: the VAE's own are (samples - latents_bias) / latents_scale",
        "vae": shown(vae),
        "latents_scale": scale.values.tolist(),
        "latents_bias": bias.values.tolist(),
    }
