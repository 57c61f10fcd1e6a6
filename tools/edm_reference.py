"""What the original code of EDM and EDM2 computes on small networks whose weights follow a rule.

    python tools/edm_reference.py path/to/clone/of/edm     # writes tests/io/importing/edm_reference.json
    python tools/edm_reference.py path/to/clone/of/edm2    # writes tests/io/importing/edm2_reference.json

The clones (github.com/NVlabs/edm and edm2, CC BY-NC-SA 4.0) are run as they are, and no part of this repository. The
files hold sizes and numbers: for each case how the network was built, names and shapes of its tensors, and its
denoised output at three noise levels. The tests repeat weights and inputs from `tensor_of_rule`.
"""

import json
import math
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "tests" / "importing"
SIGMAS, LABELS, CLASSES = (0.5, 3.0, 40.0), (0, 2, 3), 3  # the label 3 is "no class"
EVERY = 9  # of the outputs, which entries are kept

_SONG = {
    **{"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1},
    **{"attn_resolutions": [4], "dropout": 0.1},
}
_DDPM = {**_SONG, "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard"}
_NCSN = {
    **{**_SONG, "embedding_type": "fourier", "encoder_type": "residual", "decoder_type": "standard"},
    **{"channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]},
}
_ADM = {
    **{"model_type": "DhariwalUNet", "model_channels": 128, "channel_mult": [1, 1], "num_blocks": 1},
    **{"attn_resolutions": [4], "dropout": 0.1},
}
_EDM2 = {
    **{"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]},
    **{"channels_per_head": 16, "use_fp16": False, "dropout": 0.1},
}
CASES = {
    "edm": {
        "ddpmpp": ("EDMPrecond", 0, {**_DDPM, "augment_dim": 9}),
        "ddpmpp_classes_vp": ("VPPrecond", CLASSES, {**_DDPM, "label_dropout": 0.1}),
        "ncsnpp_classes": ("EDMPrecond", CLASSES, {**_NCSN, "augment_dim": 9, "label_dropout": 0.1}),
        "ncsnpp_ve": ("VEPrecond", 0, _NCSN),
        "skip_decoder": ("EDMPrecond", 0, {**_NCSN, "decoder_type": "skip"}),
        "adm_classes": ("EDMPrecond", CLASSES, {**_ADM, "label_dropout": 0.1}),
    },
    "edm2": {
        "images": ("Precond", 0, _EDM2),
        "classes": ("Precond", CLASSES, {**_EDM2, "channel_mult_noise": 1, "channel_mult_emb": 3}),
    },
}


def tensor_of_rule(name: str, shape: Sequence[int]) -> Tensor:
    """A wave whose phase the name sets, float32; scaled so that activations keep their size."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    wave = (1.3 * count + 0.01 * count.square() + zlib.crc32(name.encode()) % 1000).sin().reshape(list(shape))
    if name.endswith(("freqs", "phases")):
        wave = 3 * wave
    elif len(shape) > 1 and name != "x":
        wave = wave * math.sqrt(2 / math.prod(shape[1:]))
    elif not shape or name.endswith("weight"):
        wave = 0.8 + 0.2 * wave
    elif name != "x":
        wave = 0.2 * wave
    return wave.float()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Noisy samples [3, 3, 8, 8], their noise levels and labels."""
    sigmas = torch.tensor(SIGMAS)
    return tensor_of_rule("x", (3, 3, 8, 8)) * (1 + sigmas[:, None, None, None]), sigmas, torch.tensor(LABELS)


def reference(wrapper: type, classes: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the file holds of one case."""
    net = wrapper(img_resolution=8, img_channels=3, label_dim=classes, **arguments).eval().requires_grad_(False)
    state = net.state_dict()
    for name, value in state.items():
        if not name.endswith("resample_filter"):
            value.copy_(tensor_of_rule(name, value.shape))
    x, sigmas, labels = inputs()
    rows = torch.nn.functional.one_hot(labels, CLASSES + 1)[:, :CLASSES].float() if classes else None
    denoised = net(x, sigmas, rows).flatten()[::EVERY]
    inner = "unet" if hasattr(net, "unet") else "model"
    names: dict[str, list[str]] = {}
    for name, value in state.items():
        names.setdefault(",".join(map(str, value.shape)), []).append(name)
    scalars = ("sigma_data", "sigma_min", "sigma_max", "beta_d", "beta_min", "M", "label_dim", "img_channels")
    return {
        "class": type(net).__name__,
        "state": {name: getattr(net, name) for name in scalars if math.isfinite(getattr(net, name, math.inf))},
        "inner": inner,
        "inner_class": type(getattr(net, inner)).__name__,
        "inner_arguments": dict(getattr(net, inner).init_kwargs),
        "names_of_shape": {shape: " ".join(found) for shape, found in names.items()},
        "denoised": [float(f"{value:.7g}") for value in denoised.tolist()],
    }


def main(clone: Path) -> None:
    """Write the file of the repository at `clone`."""
    sys.path.insert(0, str(clone))
    which = "edm2" if (clone / "training" / "networks_edm2.py").is_file() else "edm"
    networks = __import__(f"training.networks{'_edm2' if which == 'edm2' else ''}", fromlist=["networks"])
    cases = {name: reference(getattr(networks, case[0]), *case[1:]) for name, case in CASES[which].items()}
    made_by = "tools/edm_reference.py: numbers that the original code computed, no weights of anybody"
    lines = [f'  "{name}": {json.dumps(case, separators=(",", ":"))}' for name, case in cases.items()]
    text = "{\n" + f'  "made_by": "{made_by}",\n' + ",\n".join(lines) + "\n}\n"
    (FOLDER / f"{which}_reference.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
