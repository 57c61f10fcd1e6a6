"""Features of any torch module: a network of your own, or the pretrained ones of `pretrained.py`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fdistill.data.batches import InMemorySplit
from fdistill.evaluation.features.base import FeatureExtractor


class ModuleFeatures(FeatureExtractor):
    """The output of a module, or of one of its layers: [n, c, h, w] averaged over h and w, anything else flattened.

    Args:
        module: reads a batch; kept in evaluation mode from now on.
        resolution: images are resized to this height and width by antialiased bicubic interpolation and clamped to
            [-1, 1]; None where the module reads the samples in their own size.
        mean: what the module's training subtracted from values in [0, 1], one number per channel or one for all; grey
            images are repeated where there are three.
        std: what it divided by then. A mean and std of 0.5 leave samples in [-1, 1] as they are.
        layer: name of a submodule, as in `named_modules`, whose last output is taken instead of the module's.

    Raises:
        ValueError: for an argument out of range or a layer that is not there; and by `prepare` for samples that the
            module does not read.
    """

    batch_size = 64

    def __init__(
        self,
        module: nn.Module,
        resolution: int | None = None,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
        layer: str | None = None,
    ) -> None:
        super().__init__()
        if resolution is not None and resolution < 1:
            raise ValueError(f"resolution of the module's images: expected >= 1, got {resolution}")
        if not mean or len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"mean and std hold one number per channel, std > 0: got {list(mean)} and {list(std)}; correct them"
            )
        names = [name for name, _ in module.named_modules() if name]
        if layer is not None and layer not in names:
            raise ValueError(f"layer names a submodule: expected one of {names[:20]}, got {layer!r}; choose one")
        self.module, self.resolution, self.layer = module.eval(), resolution, layer
        self.input_mean: Tensor
        self.register_buffer("input_mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.input_std: Tensor
        self.register_buffer("input_std", torch.tensor(std, dtype=torch.float32), persistent=False)

    @property
    def what(self) -> str:
        layer = f"layer {self.layer} of " if self.layer else ""
        size = f" at {self.resolution} x {self.resolution}" if self.resolution else ""
        return f"{layer}{type(self.module).__name__}{size}"

    def fit(self, x: InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int) -> None:
        channels = len(self.input_mean)
        if self.resolution is not None and len(x.sample_shape) != 3:
            raise ValueError(
                f"a module with a resolution reads images: expected [n, C, H, W], got samples {list(x.sample_shape)}"
            )
        if channels > 1 and x.sample_shape[0] not in (1, channels):
            raise ValueError(
                f"{type(self).__name__} reads images of 1 or {channels} channels: got samples {list(x.sample_shape)}"
            )

    def raw_features(self, x: Tensor) -> Tensor:
        output = self._output(self._as_trained(x))
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(x):
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"{self.what} gives one row of features per sample: expected a tensor [{len(x)}, ...], got {got}; "
                "name a layer that does"
            )
        return output.float().mean((2, 3)) if output.ndim == 4 else output.float().flatten(1)

    def _as_trained(self, x: Tensor) -> Tensor:
        """Samples in the size and with the normalisation that the module was trained with."""
        if self.resolution is not None and x.shape[2:] != (self.resolution, self.resolution):
            size = (self.resolution, self.resolution)
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)
        per_channel = (1, -1, *[1] * (x.ndim - 2))
        return ((x + 1) / 2 - self.input_mean.view(per_channel)) / self.input_std.view(per_channel)

    def _output(self, x: Tensor) -> Any:
        if self.layer is None:
            return self.module(x)
        outputs: list[Any] = []
        hook = self.module.get_submodule(self.layer).register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            self.module(x)
        finally:
            hook.remove()
        return outputs[-1] if outputs else None
