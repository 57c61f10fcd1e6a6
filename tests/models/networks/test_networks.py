"""The contract of every raw network: shapes, halves, features, labels, gradients."""

import copy
import inspect

import pytest
import torch
from stock_models import SMALL_DIT, SMALL_UNET
from torch.testing import assert_close

from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import (
    MLP,
    DiffusersUNet,
    EDM2UNet,
    GaussianMixture,
    Network,
    SmallUNet,
    SongUNet,
    StockDiT,
    StockUNet,
    TwoExperts,
)
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import EDM, X0Prediction

ARGUMENTS = {
    GaussianMixture: {"means": [[-1.0, 0.0], [1.0, 0.5]], "stds": [0.2, 0.3]},
    StockUNet: {"config": SMALL_UNET | {"num_class_embeds": 5}, "last_class_is_none": True},
    StockDiT: {"config": SMALL_DIT},
}


def awake(network):
    """A network whose gains and branches have left the zero, or nearly zero, from which they start."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("gain"):
                value.fill_(0.7)
            elif value.ndim == 4 and value.abs().max() < 1e-3:
                value.mul_(1e5)
    return network


VARIANTS = {
    "TwoExperts": lambda: TwoExperts(*(SmallUNet(4, 1, (8, 12), num_classes=4) for _ in range(2)), split=0.6),
    "SongUNet": lambda: awake(SongUNet(8, 1, 4, 16, (1, 2), blocks_per_level=1, attention_resolutions=(4,))),
    "NCSN++": lambda: awake(
        SongUNet(8, 2, 4, 16, (1, 2), 2, 4, 1, (8,), 0.1, "fourier", "residual", "skip", (1, 3, 3, 1))
    ),
    "EDM2UNet": lambda: awake(EDM2UNet(8, 2, 4, 16, (1, 2), None, None, 1, (4,), channels_per_head=16)),
    "two experts of points": lambda: TwoExperts(MLP(width=12, depth=3), MLP(width=12, depth=3, skip=True), split=0.6),
    "MLP of five": lambda: MLP(dim=5, width=12, depth=3, num_classes=4),
    "two colour levels": lambda: SmallUNet(resolution=4, channels=3, widths=(8, 12), num_classes=4),
    "one level": lambda: SmallUNet(resolution=5, channels=1, widths=(8,), num_classes=2),
    "three diffusers levels": lambda: DiffusersUNet(8, 3, (8, 8, 16), num_classes=4, blocks_per_level=2),
    "attention": lambda: DiffusersUNet(8, 1, (8, 16), num_classes=4, attention_levels=(1,)),
}


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    ours = [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]
    # tests/io/importing has the stock pipelines, and test_word_unet.py what takes tokens
    return [sub for sub in ours if sub.__name__ not in ("TextToImageNetwork", "WordUNet")]


BUILDERS = {cls.__name__: lambda cls=cls: cls(**ARGUMENTS.get(cls, {})) for cls in concrete_subclasses(Network)}
BUILDERS |= VARIANTS
every_network = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def ready(build, dtype=torch.float64, n=6):
    """A network and a batch for it."""
    torch.manual_seed(0)
    network = build().to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *network.sample_shape, dtype=dtype, generator=generator)
    noise = torch.rand(n, dtype=dtype, generator=generator) + 0.1
    labels = torch.arange(n) % (network.num_classes + 1) if network.num_classes else None
    return network, x, noise, labels


@every_network
def test_output_has_the_shape_and_precision_of_the_sample(build):
    for dtype in (torch.float32, torch.float64):
        network, x, noise, labels = ready(build, dtype)
        output = network(x, noise, labels)
        assert output.shape == x.shape
        assert output.dtype == dtype
        assert output.isfinite().all()


@every_network
def test_decoding_the_encoding_is_the_forward_pass(build):
    network, x, noise, labels = ready(build)
    encoding = network.encode(x, noise, Condition.of(labels, network.takes))
    assert torch.equal(network.decode(encoding), network(x, noise, labels))
    assert torch.equal(network.decode(encoding), network.decode(encoding))  # decoding leaves the encoding alone


@every_network
def test_feature_channels_are_those_of_the_taps(build):
    network, x, noise, labels = ready(build)
    features = network.encode(x, noise, Condition.of(labels, network.takes)).features
    assert tuple(tap.shape[1] for tap in features) == network.feature_channels
    assert all(len(tap) == len(x) for tap in features)


@every_network
def test_samples_of_a_batch_do_not_see_each_other(build):
    network, x, noise, labels = ready(build)
    alone = [network(x[i : i + 1], noise[i : i + 1], None if labels is None else labels[i : i + 1]) for i in range(6)]
    assert_close(torch.cat(alone), network(x, noise, labels), rtol=1e-9, atol=1e-11)


@every_network
def test_output_depends_on_sample_noise_and_label(build):
    network, x, noise, labels = ready(build)
    output = network(x, noise, labels)
    assert not torch.allclose(network(x + 0.1, noise, labels), output)
    assert not torch.allclose(network(x, noise + 0.3, labels), output)
    if network.num_classes:
        assert not torch.allclose(network(x, noise, (labels + 1) % (network.num_classes + 1)), output)


@every_network
def test_labels_of_an_unconditional_network_are_ignored_and_of_a_conditional_one_required(build):
    network, x, noise, labels = ready(build)
    if network.num_classes:
        with pytest.raises(ValueError, match="labels"):
            network(x, noise)
    else:
        assert torch.equal(network(x, noise, torch.zeros(len(x), dtype=torch.long)), network(x, noise, labels))


@every_network
def test_a_fresh_network_has_every_parameter_in_its_gradient(build):
    network, x, noise, labels = ready(build)
    loss = network.train()(x, noise, labels).square().sum()
    assert loss.requires_grad == any(True for _ in network.parameters())
    if loss.requires_grad:
        loss.backward()
    silent = [
        key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


@every_network
def test_gradient_reaches_the_sample_through_the_whole_network(build):
    network, x, noise, labels = ready(build)
    (gradient,) = torch.autograd.grad(network(x.requires_grad_(), noise, labels).square().sum(), x)
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()


@every_network
def test_the_same_seed_builds_the_same_network(build):
    networks = []
    for _ in range(2):
        torch.manual_seed(5)
        networks.append(build().state_dict())
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])


def away_unless_asked(unit):
    """Weights that are NaN but while the module is asked, like those that are gathered for it."""
    own = [p for p in unit.parameters() if not p.isnan().all()]  # those of units inside are away already
    kept = [p.detach().clone() for p in own]

    def fill(values):
        with torch.no_grad():
            for parameter, value in zip(own, values, strict=True):
                parameter.copy_(value)

    unit.register_forward_pre_hook(lambda *_: fill(kept))
    unit.register_forward_hook(lambda *_: fill([torch.full_like(p, torch.nan) for p in own]))
    fill([torch.full_like(p, torch.nan) for p in own])


@every_network
def test_weights_of_a_unit_are_read_only_while_it_is_asked(build):
    network, x, noise, labels = ready(build)
    with torch.no_grad():
        expected = network(x, noise, labels)
        for unit in network.units():
            away_unless_asked(unit)
        assert torch.equal(network(x, noise, labels), expected)


def test_units_hold_most_of_the_weights_of_a_deep_network():
    for name in ("SongUNet", "NCSN++", "three diffusers levels", "StockDiT"):
        network = BUILDERS[name]()
        inside = {id(p) for unit in network.units() for p in unit.parameters()}
        weights = [(id(p) in inside, p.numel()) for p in network.parameters()]
        assert sum(n for is_inside, n in weights if is_inside) > 0.7 * sum(n for _, n in weights), name


@every_network
def test_held_in_bfloat16_it_computes_what_autocast_does_and_gives_float32(build):
    network, x, noise, labels = ready(build, torch.float32)
    path = X0Prediction(VarianceExploding()) if isinstance(network, GaussianMixture) else EDM(0.5)
    full = Denoiser(network, path).requires_grad_(False)
    half = copy.deepcopy(full).hold_in(torch.bfloat16)
    sigma = (4 * noise).exp()
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        rounded, taps = full(x, sigma, labels), full.encode(x, sigma, labels).features
    found, encoded = half(x, sigma, labels), half.encode(x, sigma, labels).features
    assert {value.dtype for value in (found, *encoded)} == {torch.float32}
    assert_close(found, full(x, sigma, labels), rtol=0.05, atol=0.05)
    if not isinstance(network, EDM2UNet):  # which scales its weights before it uses them
        assert torch.equal(found, rounded)
        assert all(torch.equal(a, b.float()) for a, b in zip(encoded, taps, strict=True))
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    assert all(map(torch.equal, half.hold_in(torch.float32).parameters(), rounded_matrices(full)))


def rounded_matrices(denoiser):
    tables = {id(m.weight) for m in denoiser.modules() if isinstance(m, torch.nn.Embedding)}
    return [p if p.ndim < 2 or id(p) in tables else p.bfloat16().float() for p in denoiser.parameters()]
