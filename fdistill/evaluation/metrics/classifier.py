"""A small image classifier, trained on the real images, whose 32 penultimate numbers are the features to compare in."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fdistill.data.batches import InMemorySplit
from fdistill.evaluation.metrics.blocks import checked_labels

FEATURES = 32
SEEN_SIZE = 16  # pixels along what the first convolution makes of an image, at most
BATCH_SIZE = 64
LEARNING_RATE = 3e-3


class ConvClassifier(nn.Module):
    """Convolutions that halve the image until it is at most 4 x 4, a linear layer to 32 features, a linear head.

    The first one has a stride that leaves at most 16 x 16: at full resolution it would cost four fifths of all time.

    The features are taken before the nonlinearity: they have both signs, so that cosines between them spread over
    [-1, 1] and the Vendi score means something.

    Args:
        in_channels: channels of the images, >= 1.
        num_classes: >= 2.
        resolution: height and width of the images, >= 8.
        width: channels of the first convolution; each halving of the image doubles them, up to 4 x width.
    """

    def __init__(self, in_channels: int, num_classes: int, resolution: int, width: int = 16) -> None:
        super().__init__()
        for name, value, least in (
            ("in_channels", in_channels, 1),
            ("num_classes", num_classes, 2),
            ("resolution", resolution, 8),
            ("width", width, 1),
        ):
            if value < least:
                raise ValueError(f"{name} of a classifier: expected >= {least}, got {value}")
        self.image_shape = (in_channels, resolution, resolution)
        self.num_classes = num_classes
        stride = -(-resolution // SEEN_SIZE)
        kernel = max(3, stride // 2 * 2 + 1)
        layers = [nn.Conv2d(in_channels, width, kernel, stride, kernel // 2), nn.SiLU()]
        channels, size = width, -(-resolution // stride)
        while size > 4:
            wider = min(2 * channels, 4 * width)
            layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.SiLU()]
            channels, size = wider, (size + 1) // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, FEATURES))
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features [n, 32] of images [n, C, H, W] in [-1, 1]."""
        if x.ndim != 4 or x.shape[1:] != self.image_shape:
            raise ValueError(
                f"this classifier reads images of one shape: expected [n, {', '.join(map(str, self.image_shape))}], "
                f"got {list(x.shape)}; train one on images of this shape"
            )
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [n, num_classes] of images [n, C, H, W] in [-1, 1]."""
        return self.head(F.silu(self.features(x)))


def train_classifier(
    x: Tensor | InMemorySplit,
    labels: Tensor,
    num_classes: int,
    seed: int,
    epochs: int = 100,
    steps: int | None = None,
    device: torch.device | None = None,
) -> ConvClassifier:
    """Return a classifier trained on images `x` [n, C, R, R] in [-1, 1] with `labels` [n], in eval mode.

    The same seed, images and number of threads give the same weights bit for bit on a CPU. The global random state
    is left alone.

    Args:
        x, labels: the training set; of a split no more than a batch is held in float32.
        num_classes: >= 2.
        seed: of the first weights, the batches and the shifts of the images.
        epochs: passes over the images, >= 1.
        steps: batches of up to 64 images to train for in place of `epochs`, >= 1, the last pass cut short.
        device: where to train; that of `x`, where not given.

    Raises:
        ValueError: when images are not square, not finite or below 8 x 8, or labels do not fit them.
    """
    shape = tuple((x if isinstance(x, Tensor) else x.x).shape)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"the classifier trains on square images: expected [n, C, R, R], got {list(shape)}")
    if len(labels) != len(x):
        raise ValueError(f"every image has a label: expected {len(x)}, got {len(labels)}")
    if isinstance(x, Tensor) and not x.isfinite().all():  # a split has looked
        raise ValueError("the classifier trains on finite numbers: got a NaN or an infinity; check the images")
    if epochs < 1 or (steps is not None and steps < 1):
        raise ValueError(f"epochs and steps of training: expected >= 1, got {epochs} and {steps}")
    labels = checked_labels(labels, num_classes)
    device = device or (x if isinstance(x, Tensor) else x.x).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ConvClassifier(shape[1], num_classes, shape[2]).to(device)
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device sees the same batches
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    total = steps or epochs * -(-len(x) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=total)
    batches = tqdm(islice(_batches(len(x), generator), total), desc="classifier", total=total, leave=False)
    with torch.enable_grad():
        for index in batches:
            images = x[index.to(x.device)].detach().float() if isinstance(x, Tensor) else x.rows(index).x
            loss = F.cross_entropy(
                model(_shifted(images.to(device), generator)), labels[index.to(labels.device)].to(device)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


def _batches(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Return batches of indices without end: each pass over [0, n) in a new order, drawn when it begins."""
    while True:
        yield from torch.randperm(n, generator=generator).split(BATCH_SIZE)


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return each image of `x` [n, C, R, R] moved by -1, 0 or 1 pixel both ways, its edges repeated."""
    n, channels, size, _ = x.shape
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    offset = torch.randint(0, 3, (2, n, 1), generator=generator) + torch.arange(size)
    rows, columns = offset.to(x.device)
    sample = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
