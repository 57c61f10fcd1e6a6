"""A teacher learns the conditional expectation, its no-class row included, and its average is what it is known by."""

import functools

import pytest
import torch
from tiny_runs import GivenData, Recorded, adam, exact, fit, mlp, moved, ring, teacher_training, trainer, weights

from fdistill.core.random import generator_for
from fdistill.data import Batch
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.learned_uncertainty import LearnedUncertainty
from fdistill.theory.loss_weights import ConstantEps, Debias, EDMWeight
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.preconditioning import EDM
from fdistill.training import NonFiniteError

STD, SIGMA_DATA = 0.4, 1.0  # EDM's own skip would be the optimum if they were equal


def gaussian(n, seed=0):
    return STD * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def optimal_loss():
    """E over sigma of EDM's weight times s^2 sigma^2 / (s^2 + sigma^2), the posterior variance of Gaussian data."""
    sigma = LogNormal(-0.5, 1.0).quantile((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return float((weight * STD**2 * sigma**2 / (STD**2 + sigma**2)).mean())


@pytest.mark.slow
def test_the_loss_comes_down_to_its_minimum_in_closed_form():
    module = teacher_training(optimizer=functools.partial(adam, lr=5e-3), ema_decay=0.99)
    test = Batch(gaussian(200_000, seed=1), torch.zeros(200_000, dtype=torch.long))

    def loss_of(denoiser):
        with torch.no_grad():
            return float(module._loss(denoiser, test, generator_for(7), 0.0, module.loss_weight)[0])

    exact_loss = loss_of(exact([[0.0, 0.0]], [STD]))
    assert exact_loss == pytest.approx(optimal_loss(), rel=0.01)
    start = loss_of(module.denoiser)
    fit(module, 600, GivenData(gaussian(20_000), batch_size=256))
    assert start > 1.5 * exact_loss
    assert exact_loss < loss_of(module.ema.average) < 1.03 * exact_loss


@pytest.mark.parametrize(("dropout", "learnt"), [(0.0, [0, 1]), (1.0, [2]), (0.5, [0, 1, 2])])
def test_label_dropout_trains_the_no_class_row(dropout, learnt):
    network = mlp(num_classes=2).network
    before = network.condition.classes.weight.detach().clone()
    module = teacher_training(network, label_dropout=dropout, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    fit(module, 3)
    rows = (module.denoiser.network.condition.classes.weight != before).any(dim=1)
    assert rows.nonzero().flatten().tolist() == learnt


def test_validation_sees_every_class_and_uses_the_average_without_dropout():
    module, data = teacher_training(mlp(num_classes=2).network, label_dropout=1.0), ring()
    fit(module, 2, data)
    run = trainer(1, limit_val_batches=1.0)
    losses = [run.validate(module, datamodule=data, verbose=False)[0]["validation/loss"] for _ in range(2)]
    assert losses[0] == losses[1]
    module.label_dropout = 0.0
    assert run.validate(module, datamodule=data, verbose=False)[0]["validation/loss"] == losses[0]


def test_predicts_samples_for_the_given_labels():
    module, data = teacher_training(mlp(num_classes=2).network, num_steps=3), ring()
    run = fit(module, 1, data)
    predicted = torch.cat(run.predict(module, datamodule=data))
    assert predicted.shape == data.held_out_samples.copied().x.shape
    assert torch.equal(predicted, torch.cat(run.predict(module, datamodule=data)))


def test_a_nan_loss_stops_the_run():
    module = teacher_training()
    with torch.no_grad():
        module.denoiser.network.output.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="gradient"):
        fit(module, 2)


def test_the_checkpoint_is_the_average_with_its_sampler(tmp_path):
    module = teacher_training(mlp(num_classes=2).network, ema_decay=0.5, num_steps=4, sigma_max=10.0, guidance=2.0)
    fit(module, 4).save_checkpoint(tmp_path / "teacher.ckpt")
    model = load_model(tmp_path / "teacher.ckpt")
    assert isinstance(model.denoiser, Denoiser)
    assert isinstance(model.denoiser.preconditioning, EDM)
    assert (model.kind, model.guidance, model.evaluations) == ("teacher", 2.0, 14)
    assert float(model.sigmas[0]) == pytest.approx(10.0)
    noise, labels = model.noise(6, seed=0), model.labels(6)
    assert torch.equal(model.sample(noise, labels), module.generative_model().sample(noise, labels))
    average, current = module.ema.average.network.output.weight, module.denoiser.network.output.weight
    assert torch.equal(model.denoiser.network.output.weight, average)
    assert not torch.equal(average, current)


def loss_and_gradient(module, batch):
    loss, _ = module._loss(module.denoiser, batch, generator_for(5), 0.0, module.loss_weight)
    return loss.detach(), torch.autograd.grad(loss, list(module.denoiser.parameters()))


def noised(module, batch):
    """The noise levels, noise and noisy samples of `loss_and_gradient`."""
    generator = generator_for(5)
    sigma = module.noise_levels.sample(len(batch.x), generator)
    eps = torch.randn(batch.x.shape, generator=generator)
    return sigma, eps, batch.x + sigma[:, None] * eps


@pytest.mark.parametrize("weight", [ConstantEps(), Debias()], ids=lambda weight: type(weight).__name__)
def test_a_weight_trains_what_it_says_of_the_noise(weight):
    module, batch = teacher_training(loss_weight=weight), Batch(gaussian(64), torch.zeros(64, dtype=torch.long))
    sigma, eps, x = noised(module, batch)
    eps_hat = (x - module.denoiser(x, sigma)) / sigma[:, None]
    by_sample = (eps - eps_hat).square().mean(dim=1)
    by_hand = (by_sample if isinstance(weight, ConstantEps) else sigma * by_sample).mean()  # S^-1/2 = sigma
    loss, gradient = loss_and_gradient(module, batch)
    torch.testing.assert_close(loss, by_hand.detach())
    expected = torch.autograd.grad(by_hand, list(module.denoiser.parameters()))
    for got, wanted in zip(gradient, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_without_a_weight_it_is_edms_bit_for_bit():
    batch = Batch(gaussian(64), torch.zeros(64, dtype=torch.long))
    module = teacher_training()
    sigma, _, x = noised(module, batch)
    error = (module.denoiser(x, sigma) - batch.x).square().mean(dim=1)
    loss, gradient = loss_and_gradient(module, batch)
    assert torch.equal(loss, ((sigma.square() + 1) / sigma.square() * error).mean())
    again, same = loss_and_gradient(teacher_training(loss_weight=EDMWeight(1.0)), batch)
    assert torch.equal(loss, again)
    assert all(map(torch.equal, gradient, same))


def test_validation_weighs_alike_whatever_training_does():
    data, losses = ring(), []
    for weight in (None, ConstantEps(), LearnedUncertainty(1.0)):
        run = trainer(1, limit_val_batches=1.0)
        module = teacher_training(loss_weight=weight)
        losses.append(run.validate(module, datamodule=data, verbose=False)[0]["validation/loss"])
    assert losses[0] == losses[1] == losses[2]


def test_learned_uncertainty_starts_as_edm_and_is_clipped_on_its_own():
    steps = {}
    for name, weight in (("edm", None), ("learned", LearnedUncertainty(1.0))):
        module = teacher_training(optimizer=Recorded, loss_weight=weight, gradient_clip=0.1)
        before = weights(module)
        run = fit(module, 1)
        steps[name] = module.denoiser.network.output.weight.detach().clone()
        assert moved(before, module, "loss_weight") == (weight is not None)
    assert run.optimizers[0].norms[0][0] == pytest.approx(0.1 * 2**0.5, rel=1e-4)  # both were clipped to 0.1
    torch.testing.assert_close(steps["learned"], steps["edm"])


def test_learned_uncertainty_is_kept_in_the_run_and_left_out_of_the_teacher(tmp_path):
    module = teacher_training(loss_weight=LearnedUncertainty(1.0))
    fit(module, 3).save_checkpoint(tmp_path / "teacher.ckpt")
    saved = torch.load(tmp_path / "teacher.ckpt", weights_only=True)["state_dict"]
    assert {name for name in saved if "loss_weight" in name} == {"loss_weight.slopes", "loss_weight.level"}
    assert torch.equal(saved["loss_weight.slopes"], module.loss_weight.slopes)
    kept = load_model(tmp_path / "teacher.ckpt").denoiser.state_dict()
    assert kept.keys() == module.ema.average.state_dict().keys()
    assert not [name for name in kept if "loss_weight" in name]


def test_a_broken_uncertainty_stops_the_run_before_any_weight_moves():
    module = teacher_training(loss_weight=LearnedUncertainty(1.0))
    with torch.no_grad():
        module.loss_weight.level.fill_(torch.nan)
    before = weights(module)
    with pytest.raises(NonFiniteError, match="loss_weight"):
        fit(module, 2)
    assert not moved(before, module, "denoiser")


def test_learned_uncertainty_tends_to_the_logarithm_of_edms_loss():
    module = teacher_training(optimizer=functools.partial(adam, lr=1e-2), loss_weight=LearnedUncertainty(SIGMA_DATA))
    fit(module, 250, GivenData(gaussian(20_000), batch_size=256))
    sigma = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64)
    posterior = STD**2 * sigma**2 / (STD**2 + sigma**2)
    expected = (EDMWeight(SIGMA_DATA).denoiser(sigma) * posterior).log()
    assert (module.loss_weight.uncertainty(sigma) - expected).abs().max() < 0.15
