"""What a distillation starts from, and what it refuses before the first turn."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry
from stock_models import SMALL_UNET
from tiny_runs import GivenData, distillation, exact, fit, mlp, ring, teacher_training, trainer

from fdistill.core.weight_files import CheckpointError
from fdistill.data import LatentsOnly
from fdistill.evaluation.metrics import PixelMoments, frechet_distance
from fdistill.io.export import export_folder
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, StockUNet
from fdistill.objectives import RewardAugmented, SiD
from fdistill.objectives.rewards import Reward
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.divergences import ReverseKL
from fdistill.theory.preconditioning import EDM
from fdistill.training import TeacherModule
from fdistill.training.initial_networks import teacher_model


def test_student_and_fake_score_start_as_the_average_of_the_teacher(tmp_path):
    teacher = teacher_training(ema_decay=0.5)
    fit(teacher, 5).save_checkpoint(tmp_path / "teacher.ckpt")
    module = distillation(str(tmp_path / "teacher.ckpt"), divergence=ReverseKL())
    average = teacher.ema.average.state_dict()
    assert any(not torch.equal(value, average[name]) for name, value in teacher.denoiser.state_dict().items())
    for network in (module.teacher, module.student, module.fake_score, module.ema.average):
        assert all(torch.equal(value, average[name]) for name, value in network.state_dict().items())
    storages = {p.data_ptr() for p in module.parameters()}
    assert len(storages) == len(list(module.parameters()))  # no network shares a tensor with another


def test_only_student_fake_score_and_ratio_learn_and_no_denoiser_is_in_training_mode():
    module = distillation(mlp().eval())  # as load_model returns it
    watch = L.Callback()
    modes = {}

    def write_down(trainer, module, *_):
        parts = {**dict(module.named_children()), "ema": module.ema.average}
        modes.update({name: {m.training for m in part.modules()} for name, part in parts.items()})

    watch.on_train_batch_start = write_down
    fit(module, 1, callbacks=[watch])
    learns = ("student", "fake_score", "ratio")
    assert modes == {name: {name == "ratio"} for name in (*learns, "teacher", "frozen", "ema")}
    learning = {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert learning == set(learns)
    module.eval().train()
    assert not any(m.training for frozen in (module.teacher, module.ema.average) for m in frozen.modules())


def test_initial_networks_are_copied_from_what_is_given():
    student, fake_score = mlp(seed=1), mlp(seed=2)
    module = distillation(student=student, fake_score=fake_score)
    fit(module, 2)
    assert torch.equal(mlp(seed=1).network.input.weight, student.network.input.weight)
    assert not torch.equal(module.student.network.input.weight, student.network.input.weight)


def test_the_same_seed_builds_the_same_discriminator_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    one, same, other = distillation(seed=3), distillation(seed=3), distillation(seed=4)
    assert torch.equal(state, torch.get_rng_state())
    first, again, third = (next(module.ratio.parameters()) for module in (one, same, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, third)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma_init": 0.0}, "sigma_init"),
        ({"sigma_init": -1.0}, "sigma_init"),
        ({"sigma_init": float("nan")}, "sigma_init"),
        ({"sigma_init": float("inf")}, "sigma_init"),
        ({"adversarial_weight": float("nan")}, "not negative: got nan"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"turn": "fuse"}, "turn"),
        ({"discriminator": "teach"}, "discriminator"),
        ({"normaliser": "none"}, "normaliser"),
        ({"teacher": mlp(num_classes=2), "student": mlp()}, "classes"),
        ({"fake_score": mlp(dim=3)}, "fake_score"),
        ({"adversarial_weight": -0.1}, "not negative: got -0.1"),
        ({"fake_score_warmup": -1}, "not negative: .*-1"),
        ({"fake_updates_per_student": 0}, "at least 1: got 0"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"teacher": exact([[0.0, 0.0]], [1.0])}, "parameters"),
        (
            {"teacher": exact([[0.0, 0.0]], [1.0]), "student": mlp()},
            "fake_score",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        distillation(**changes)


def test_sigma_data_has_to_be_given_where_no_network_knows_it():
    learnt_x0 = exact([[0.0, 0.0]], [1.0])
    learnt_x0.network = mlp().network
    with pytest.raises(ValueError, match="data"):
        distillation(fake_score=learnt_x0)
    assert distillation(fake_score=learnt_x0, sigma_data=0.7).sigma_data == 0.7
    assert distillation(fake_score=mlp(sigma_data=0.3)).sigma_data == 0.3


def test_data_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="teacher"):
        fit(distillation(), 1, GivenData(torch.zeros(4, 3)))


class Fitted(Reward):
    """A reward with a network that is made of the run's data."""

    def prepare(self, data):
        self.network = torch.nn.Linear(*data.sample_shape, 1)

    def forward(self, x, labels):
        return self.network(x).squeeze(1)


def test_what_an_objective_fits_to_the_data_stays_as_it_was_fitted_and_out_of_the_checkpoint(tmp_path):
    reward, kept = Fitted(), []
    module, watch = distillation(objective=RewardAugmented(SiD(), reward, 1.0)), L.Callback()
    watch.on_train_start = lambda *_: kept.append(reward.network.weight.clone())
    run = fit(module, 2, callbacks=[watch])
    assert torch.equal(reward.network.weight, kept[0])
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert not any(part.training for part in reward.modules())
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"student", "fake_score", "ema"}


def test_the_facts_of_a_run_tell_its_objective():
    facts = distillation(objective=SiD(1.0), renoise_levels=[0.5]).generative_model().facts
    assert facts["objective"] == {
        "class_path": "fdistill.objectives.SiD",
        "init_args": {"alpha": 1.0, "normaliser": "sample"},
    }


@pytest.mark.parametrize("num_classes", [0, 3])
def test_data_with_another_number_of_classes_is_refused(num_classes):
    with pytest.raises(ValueError, match="classes"):
        fit(distillation(mlp(num_classes=2)), 1, GivenData(torch.zeros(6, 2), num_classes))


def test_an_unconditional_model_ignores_the_classes_of_the_data():
    assert fit(distillation(), 1, ring(num_modes=3)).global_step == 1


@pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true", "fsdp"])
def test_strategies_that_wrap_or_shard_the_networks_are_refused(strategy, monkeypatch):
    module = distillation()
    module.trainer = trainer(1)
    monkeypatch.setattr(L.Trainer, "strategy", StrategyRegistry.get(strategy))
    with pytest.raises(ValueError, match="strategy"):
        module.setup("fit")


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true", "64-true"])
def test_precisions_other_than_float32_weights_are_refused(precision, monkeypatch):
    monkeypatch.setattr(L.Trainer, "precision", precision)
    with pytest.raises(ValueError, match=f"use precision 32-true or bf16-mixed, got {precision}"):
        fit(distillation(), 1)


def test_checkpoints_of_another_configuration_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(distillation(), 1).save_checkpoint(path)
    for other in (distillation(divergence=ReverseKL()), distillation(discriminator="sample"), teacher_training()):
        with pytest.raises(CheckpointError, match="configuration"):
            fit(other, 2, resume_from=path)


def test_validation_and_prediction_use_the_average_of_the_student():
    module, data = distillation(ema_decay=0.0), ring()
    run = fit(module, 3, data)
    predicted = torch.cat(run.predict(module, datamodule=data))
    assert predicted.shape == data.held_out_samples.copied().x.shape
    run = trainer(1, limit_val_batches=1.0)
    (metrics,) = run.validate(module, datamodule=data, verbose=False)
    assert metrics["validation/pixel_frechet_distance"] > 0
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(module.ema.average.parameters()) * 0, module.ema.average.parameters()
        )
    assert torch.equal(torch.cat(run.predict(module, datamodule=data)).std(0) > 0, torch.tensor([True, True]))
    (changed,) = run.validate(module, datamodule=data, verbose=False)
    assert changed["validation/pixel_frechet_distance"] != metrics["validation/pixel_frechet_distance"]


def test_an_impossible_sampling_grid_is_refused_before_training():
    with pytest.raises(ValueError, match="sigma_max"):
        teacher_training(sigma_min=1.0, sigma_max=0.5)
    with pytest.raises(ValueError, match="probability"):
        teacher_training(label_dropout=1.5)
    assert isinstance(teacher_training(), TeacherModule)


def test_a_teacher_is_not_trained_without_real_samples():
    message = "LatentsOnly"
    with pytest.raises(ValueError, match=message):
        fit(teacher_training(), 1, LatentsOnly([2], batch_size=4))


def test_a_student_checkpoint_is_refused_as_a_teacher(tmp_path):
    student = GenerativeModel.student(Denoiser(MLP(width=16, depth=2), EDM(1.0)), 5.0)
    folder = export_folder(student, tmp_path / "student")
    with pytest.raises(ValueError, match="level"):
        teacher_model(str(folder))


def test_a_teacher_keeps_its_own_sampler_and_a_denoiser_alone_gets_edms(tmp_path):
    module = distillation(guidance=1.5)
    assert module.teacher_model().guidance == 1.5
    assert len(module.teacher_model().sigmas) == 19
    training = teacher_training(num_steps=5, sigma_max=20.0)
    fit(training, 1).save_checkpoint(tmp_path / "teacher.ckpt")
    from_file = distillation(str(tmp_path / "teacher.ckpt"))
    assert torch.equal(from_file.teacher_model().sigmas, training.generative_model().sigmas)
    assert from_file.teacher_model().denoiser is from_file.teacher


def test_no_class_is_not_learnt_by_a_network_that_has_no_weights_for_it():
    network = StockUNet(SMALL_UNET | {"num_class_embeds": 3})
    with pytest.raises(ValueError, match="label_dropout"):
        teacher_training(network, label_dropout=0.1)
    teacher = teacher_training(network, label_dropout=0.0).denoiser
    with pytest.raises(ValueError, match="fake_label_dropout"):
        distillation(teacher, turn="alternating", fake_label_dropout=0.2)


def test_validation_is_the_frechet_distance_of_all_samples_and_reads_the_real_ones_once(monkeypatch):
    module, data = distillation(), ring()
    fit(module, 1, data)
    run, added = trainer(1, limit_val_batches=1.0), []
    predicted, real = torch.cat(run.predict(module, datamodule=data)), data.held_out_samples.copied().x
    expected = frechet_distance(predicted.flatten(1), real.flatten(1)).float()
    add = PixelMoments.add
    monkeypatch.setattr(PixelMoments, "add", lambda self, x: added.append(len(x)) or add(self, x))
    for times in (2, 1):
        (metrics,) = run.validate(module, datamodule=data, verbose=False)
        assert metrics["validation/pixel_frechet_distance"] == float(expected)
        assert sum(added) == times * len(real)
        added.clear()
