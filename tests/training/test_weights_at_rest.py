"""What a network is differentiated by its input for keeps nothing that only a gradient of its weights would read."""

import contextlib

import pytest
import torch
from objective_runs import learning_by
from tiny_runs import fit, mlp, ring, weights

from fdistill.objectives import SiDA
from fdistill.training import discrimination, distillation_turn
from fdistill.training.at_rest import weights_at_rest
from fdistill.training.discrimination import NoisedInput, evaluate


def kept(run):
    """What `run` returns, and the bytes of the storages that its graph keeps beside the weights."""
    storages, own = {}, {p.untyped_storage()._cdata for p in NET.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = run()
    return made, sum(storages.values())


NET = mlp(num_classes=2)
B = 256
X = torch.randn(B, 2, generator=torch.Generator().manual_seed(0))
SIGMA, LABELS = torch.linspace(0.1, 3.0, B), torch.arange(B) % 2


@pytest.mark.parametrize("what", ["value", "features"])
def test_less_is_kept_and_the_gradient_by_the_input_has_the_same_bits(what):
    ends, levels = [], {what: "gradient"}
    for learns in (True, False):
        x = X.clone().requires_grad_()
        at = NoisedInput(x, SIGMA, LABELS)
        prediction, size = kept(lambda at=at, learns=learns: evaluate(NET, at, **levels, learns=learns))
        made = prediction.denoised if what == "value" else prediction.half.features[-1]
        (gradient,) = torch.autograd.grad(made.square().sum(), x)
        ends.append((made.detach(), gradient, size))
    (value, gradient, all_of_it), (same, also, less) = ends
    assert torch.equal(value, same)
    assert torch.equal(gradient, also)
    assert less < 0.8 * all_of_it
    assert all(p.requires_grad and p.grad is None for p in NET.parameters())


def test_rest_ends_where_it_began_also_inside_itself_and_after_an_error():
    frozen = next(iter(NET.parameters())).requires_grad_(False)
    try:
        before = [p.requires_grad for p in NET.parameters()]
        with contextlib.suppress(ArithmeticError), weights_at_rest(NET), weights_at_rest(NET):
            assert not any(p.requires_grad for p in NET.parameters())
            raise ArithmeticError
        assert [p.requires_grad for p in NET.parameters()] == before
        assert not frozen.requires_grad
    finally:
        frozen.requires_grad_(True)


def test_fifty_turns_have_the_bits_of_fifty_in_which_everything_is_kept(monkeypatch):
    arguments = {"discriminator": "fake_score", "turn": "alternating", "fake_updates_per_student": 1}
    ends = []
    for keeps_all in (False, True):
        if keeps_all:
            for place in (discrimination, distillation_turn):
                monkeypatch.setattr(place, "weights_at_rest", lambda network: contextlib.nullcontext())
        fit(module := learning_by(SiDA(0.1), **arguments), 50, ring())
        ends.append(weights(module))
    assert [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])] == []


@pytest.mark.parametrize("how", [(1, 1, 1, 1), (2, 0, 1, 1), (1, 2, 2, 2)])
def test_a_convolution_keeps_no_input_and_its_gradients_have_the_same_bits_twice_over(how):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 4 // how[3], 3, 3, generator=generator), torch.randn(6, generator=generator)
    x, ends = torch.randn(2, 4, 9, 9, generator=generator).requires_grad_(), []
    layer = torch.nn.Conv2d(4, 6, 3, stride=how[0], padding=how[1], dilation=how[2], groups=how[3])
    layer.load_state_dict({"weight": weight, "bias": bias})
    for at_rest in (False, True):
        with weights_at_rest(layer) if at_rest else contextlib.nullcontext():
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.shape), t)[1], lambda t: t):
                y = layer(x)
        (by_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (twice,) = torch.autograd.grad(by_x.square().sum(), x)
        ends.append((y, by_x, twice))
        assert (x.shape in sizes) is not at_rest
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_a_unet_gives_sid_the_same_bits_in_less_memory():
    from fdistill.models.denoiser import Denoiser
    from fdistill.models.networks import SmallUNet
    from fdistill.theory.preconditioning import EDM

    net, x = Denoiser(SmallUNet(8, 1, (8, 16)), EDM(0.5)), torch.randn(4, 1, 8, 8)
    ends, sizes = [], []
    for learns in (True, False):
        x_t, read = x.clone().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, r=read: (r.append(t.nbytes), t)[1], lambda t: t):
            prediction = evaluate(net, NoisedInput(x_t, torch.ones(4), None), "gradient", learns=learns)
        (by_x,) = torch.autograd.grad(prediction.denoised.square().sum(), x_t)
        ends.append((prediction.denoised, by_x))
        sizes.append(sum(read))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    assert sizes[1] < 0.9 * sizes[0]
