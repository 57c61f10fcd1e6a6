"""A teacher from a snapshot of EDM (arXiv 2206.00364) or EDM2 (arXiv 2312.02696), whose pickle is read as data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdistill.denoiser import Denoiser
from fdistill.generative_model import GenerativeModel
from fdistill.importing.edm_adm import adm_config, adm_weights
from fdistill.importing.edm_names import Array, Inert
from fdistill.importing.edm_reader import read_snapshot, weights_of
from fdistill.networks import EDM2UNet, Network, SongUNet, StockUNet
from fdistill.paths import VPLinear
from fdistill.preconditioning import EDM, EpsPrediction, Preconditioning, VEScorePrediction
from fdistill.weight_files import CheckpointError, load_weights


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
    try:
        facts = {
            "imported_from": path.name,
            "format": f"{'EDM2' if isinstance(network, EDM2UNet) else 'EDM'} snapshot, {snapshot['ema'].name}",
            "sigma_data": float(state.get("sigma_data", 0.5)),
            **_latent_facts(snapshot.get("encoder")),
        }
        lowest, highest = max(0.002, float(state.get("sigma_min", 0))), min(80.0, float(state.get("sigma_max", 80)))
        return GenerativeModel.teacher(Denoiser(network, preconditioning), 18, lowest, highest, facts=facts)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes no teacher: {error}") from error


def _denoiser_parts(ema: Inert, path: Path) -> tuple[Network, Preconditioning]:
    modules = ema.state.get("_modules")
    inner = (modules.get("model") or modules.get("unet")) if isinstance(modules, dict) else None
    if ema.name not in _PRECONDITIONINGS or not isinstance(inner, Inert) or inner.name not in _NETWORKS:
        found = f"{ema.name} around {inner.name if isinstance(inner, Inert) else 'nothing'}"
        raise CheckpointError(
            f"{path} holds a {found[:200]}: expected one of {', '.join(_PRECONDITIONINGS)} around one of "
            f"{', '.join(_NETWORKS)}"
        )
    # augmentation labels are zero when sampling, and filters are made from their taps
    kept = {
        name: value.float()
        for name, value in weights_of(inner).items()
        if name != "map_augment.weight" and not name.endswith("resample_filter")
    }
    try:
        build, weights = _NETWORKS[inner.name](inner, kept)
        with torch.device("meta"):  # a network larger than the weights is refused before it takes memory
            load_weights(build(), {name: value.to("meta") for name, value in weights.items()}, path)
        network, preconditioning = build(), _PRECONDITIONINGS[ema.name](ema.state)
    except CheckpointError:
        raise
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise CheckpointError(f"{path} describes a {inner.name} that is not known here: {reason}") from error
    load_weights(network, weights, path)
    return network, preconditioning


def _edm(state: dict[str, Any]) -> Preconditioning:
    return EDM(float(state["sigma_data"]))


def _vp(state: dict[str, Any]) -> Preconditioning:
    lowest = float(state["beta_min"])
    return EpsPrediction(VPLinear(lowest, lowest + float(state["beta_d"])), time_scale=float(state["M"]) - 1)


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
        ValueError: for an argument that is not known here, or is not a plain value.
    """
    given = module.state.get("_init_kwargs")
    if module.state.get("_init_args") or type(given) is not dict or not all(type(name) is str for name in given):
        raise ValueError("expected the arguments that it was built with, by name")
    given = {**defaults, **{name: _plain(name, value) for name, value in given.items()}}
    channels = {given.pop(name) for name in ("in_channels", "out_channels", "img_channels") if name in given}
    if len(channels) != 1:
        raise ValueError(f"a denoiser has as many output as input channels: got {channels or 'none'}")
    drops_labels = given.pop("label_dropout", 0) > 0
    given.pop("augment_dim", None)
    other = {name: value for name, value in given.items() if name not in names and constants.get(name) != value}
    if other:
        raise ValueError(f"no network here has {', '.join(f'{name}={value}' for name, value in other.items())}")
    ours = {names[name]: value for name, value in given.items() if name in names}
    return {**ours, "channels": channels.pop(), "knows_no_class": drops_labels or not ours.get("num_classes")}


def _plain(name: str, value: Any) -> Any:
    values = value if type(value) in (list, tuple) else [value]
    if not all(type(item) in (int, float, str, bool, type(None)) for item in values):
        raise ValueError(f"{name} is a plain value or a list of them: got a {type(value).__name__}")
    if any(type(item) in (int, float) and not abs(item) < 2**20 for item in values) or len(values) > 64:
        raise ValueError(f"{name} is larger than in any network")
    return list(value) if type(value) in (list, tuple) else value


def _latent_facts(encoder: Any) -> dict[str, Any]:
    """How to decode what an EDM2 network samples, where it is no image."""
    if not isinstance(encoder, Inert) or encoder.name == "StandardRGBEncoder":
        return {}
    scale, bias = encoder.state.get("scale"), encoder.state.get("bias")
    if encoder.name != "StabilityVAEEncoder" or not isinstance(scale, Array) or not isinstance(bias, Array):
        raise ValueError(f"samples are images or latents of a StabilityVAEEncoder: got {encoder.name[:200]}")
    return {
        "samples": "latents: the VAE's own are (samples - latents_bias) / latents_scale",
        "vae": str(encoder.state.get("vae_name")),
        "latents_scale": scale.values.tolist(),
        "latents_bias": bias.values.tolist(),
    }
