"""FID, KID and Inception score here beside those of torch-fidelity, on the same images and the same random Inception.

    python tools/compare_torch_fidelity.py [--n 300] [--side 32] [--weights FILE]

Nothing is downloaded: without --weights the network of torch-fidelity gets random weights, which are as good as
trained ones to tell whether two programs compute the same. Needs torch-fidelity (`pip install 'fdistill[features]'`).
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fdistill.evaluation.fid import FidSuite, Reference, inception
from fdistill.evaluation.fid.scores import SUBSET_SIZE

NAMES = {
    "fid": "frechet_inception_distance",
    "kid": "kernel_inception_distance_mean",
    "kid_std": "kernel_inception_distance_std",
    "inception_score": "inception_score_mean",
    "inception_score_std": "inception_score_std",
}


class Pair(NamedTuple):
    """One number of two programs."""

    ours: float
    theirs: float

    @property
    def relative(self) -> float:
        """Difference over theirs."""
        return abs(self.ours - self.theirs) / abs(self.theirs)


def random_weights(path: Path, seed: int = 0) -> Path:
    """Write random weights of torch-fidelity's Inception, in the form that it reads.

    Activations stay of order 1 up to the last block. Its gain and that of the classes make numbers that differ enough
    from 0 and 1 to be compared: torch-fidelity sums KID in single precision.
    """
    from torch_fidelity import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: dict[str, Tensor]) -> None:
            """There is nothing to load yet."""

    torch.save({}, path)
    network, generator = Blank("blank", ["2048"], feature_extractor_weights_path=path), torch.Generator()
    generator.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
    for module in network.Mixed_7c.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.mul_(3)
    network.fc.weight.mul_(5)
    torch.save(network.state_dict(), path)
    return path


def images(n: int, side: int, seed: int, light: float) -> Tensor:
    """Coloured gratings of random frequency, direction and phase, 8-bit [n, 3, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    wave, colour = torch.rand(n, 3, 1, 1, 1, generator=generator), torch.rand(n, 3, 1, 1, generator=generator)
    place = torch.linspace(0, 1, side)
    down, across, phase = 40 * wave[:, 0], 40 * wave[:, 1], 6.28 * wave[:, 2]
    grating = (down * place[:, None] + across * place + phase).sin()
    return (255 * (light + (1 - light) * colour * (grating + 1) / 2)).round().byte()


class Fixed:
    """Images as a source: a fixed set."""

    evaluations, num_classes = None, 0

    def __init__(self, pixels: Tensor) -> None:
        self._pixels, self.count, self.sample_shape, self.facts = pixels, len(pixels), tuple(pixels.shape[1:]), {}

    def read(self, numbers: Tensor) -> Tensor:
        """Those with these numbers, in [-1, 1]."""
        return self._pixels[numbers].float() / 127.5 - 1


class _Listed(Dataset):
    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self._pixels[index]


def compare(generated: Tensor, real: Tensor, weights: Path) -> dict[str, Pair]:
    """Every number of both programs, of 8-bit images [n, 3, H, W] against [m, 3, H, W]."""
    from torch_fidelity import calculate_metrics

    def batches() -> Iterator[Tensor]:
        yield from real.split(64)

    reference = Reference("images", batches, len(real))
    suite = FidSuite([inception(str(weights), torch.device("cpu"))], reference, len(generated), 0, generated.shape[1:])
    ours = suite.measure({"student": Fixed(generated)}).rows["student"]
    theirs = calculate_metrics(
        input1=_Listed(generated),
        input2=_Listed(real),
        fid=True,
        kid=True,
        isc=True,
        kid_subset_size=min(SUBSET_SIZE, len(generated), len(real)),
        feature_extractor_weights_path=str(weights),
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    return {name: Pair(ours[name], theirs[its]) for name, its in NAMES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=300, help="images on each side")
    parser.add_argument("--side", type=int, default=32, help="their height and width")
    parser.add_argument("--weights", type=Path, help="torch-fidelity's file; random weights where not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = given.weights or random_weights(Path(folder) / "random.pth")
        sides = images(given.n, given.side, 0, light=0.1), images(given.n, given.side, 1, light=0.6)
        found = compare(*sides, weights)
    print(f"{'':22}{'here':>16}{'torch-fidelity':>16}{'relative':>11}")
    for name, pair in found.items():
        print(f"{name:22}{pair.ours:16.8g}{pair.theirs:16.8g}{pair.relative:11.1e}")


if __name__ == "__main__":
    main()
