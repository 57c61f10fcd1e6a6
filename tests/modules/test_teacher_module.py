"""A teacher learns the conditional expectation, its no-class row included, and its average is what it is known by."""

import functools

import pytest
import torch
from tiny_runs import GivenData, adam, exact, fit, mlp, ring, teacher_training, trainer

from fdistill.checkpoints import load_model
from fdistill.data import Batch
from fdistill.denoiser import Denoiser
from fdistill.modules import NonFiniteError
from fdistill.noise_levels import LogNormal
from fdistill.preconditioning import EDM
from fdistill.random_streams import generator_for

STD, SIGMA_DATA = 0.4, 1.0  # EDM's own skip would be the optimum if they were equal


def gaussian(n, seed=0):
    return STD * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def optimal_loss():
    """E over sigma of EDM's weight times s^2 sigma^2 / (s^2 + sigma^2), the posterior variance of Gaussian data."""
    sigma = LogNormal(-0.5, 1.0).quantile((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return float((weight * STD**2 * sigma**2 / (STD**2 + sigma**2)).mean())


def test_the_loss_comes_down_to_its_minimum_in_closed_form():
    module = teacher_training(optimizer=functools.partial(adam, lr=5e-3), ema_decay=0.99)
    test = Batch(gaussian(200_000, seed=1), torch.zeros(200_000, dtype=torch.long))

    def loss_of(denoiser):
        with torch.no_grad():
            return float(module._loss(denoiser, test, generator_for(7), 0.0))

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
    assert predicted.shape == data.held_out_split.x.shape
    assert torch.equal(predicted, torch.cat(run.predict(module, datamodule=data)))


def test_a_nan_loss_stops_the_run():
    module = teacher_training()
    with torch.no_grad():
        module.denoiser.network.output.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="loss/teacher, gradient of teacher became NaN or infinite in turn 0"):
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
