"""A student may be any differentiable generator: turns, averages, checkpoints, exact resumes are as of the others."""

import pytest
import torch
from tiny_runs import distillation, exact, fit, mlp, moved, ring, weights

from fdistill.io.export.folder import export_folder
from fdistill.io.load import load_model
from fdistill.models.condition import takes_classes
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import Generator
from fdistill.objectives import SDS, VSD, Adversarial, Needs, SiD, UniInstruct, WarmStarted
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.preconditioning import EDM, Direct

OBJECTIVES = {
    "SDS": SDS,
    "VSD": VSD,
    "SiD": SiD,
    "Uni-Instruct": lambda: UniInstruct(JensenShannon()),
    "VSD after SDS": lambda: WarmStarted(VSD(), SDS(), 2),
}


class Points(Generator):
    """Four points of each class; the first number of the noise chooses one by its sign, the second by its own."""

    sample_shape = (2,)

    def __init__(self, classes=2):
        super().__init__()
        self.num_classes = classes
        self.points = torch.nn.Parameter(torch.linspace(-1, 1, 8 * classes).reshape(classes, 4, 2))

    def generate(self, z, condition):
        return self.points[condition["labels"], (z > 0).long() @ torch.tensor([1, 2])]


def generator(**changes):
    return Denoiser(Points(**changes), Direct())


def learning(objective, **changes):
    return distillation(mlp(num_classes=2), objective, **{"student": generator(), "sigma_init": 1.0} | changes)


@pytest.mark.parametrize("turn", ["fused", "alternating"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_move_a_generator_and_its_average(name, turn):
    module = learning(OBJECTIVES[name](), turn=turn, fake_updates_per_student=1)
    before = weights(module)
    fit(module, 6)
    assert moved(before, module, "student")
    assert moved(before, module, "ema")
    assert not moved(before, module, "teacher")


@pytest.mark.parametrize("name", ["SDS", "VSD", "Uni-Instruct"])
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    ends = []
    for first in (6, 3):
        run = fit(learning(OBJECTIVES[name]()), first)
        run.save_checkpoint(tmp_path / "part.ckpt")
        module = learning(OBJECTIVES[name]())
        fit(module, 6, resume_from=tmp_path / "part.ckpt")
        ends.append(weights(module))
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_its_checkpoint_samples_and_no_pipeline_is_written_of_it(tmp_path):
    module = learning(VSD())
    fit(module, 2).save_checkpoint(tmp_path / "run.ckpt")
    model, made = load_model(tmp_path / "run.ckpt"), module.generative_model()
    noise = model.noise(6, 0)
    assert torch.equal(model.sample(noise, model.labels(6)), made.sample(noise, made.labels(6)))
    with pytest.raises(ValueError, match=r"got the generator Points; .*safetensors") as error:
        export_folder(model, tmp_path / "folder")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "folder").exists()


def test_a_generator_has_no_noise_level():
    z = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student, labels = generator(), torch.arange(8) % 2
    made = [student(sigma * z, torch.full((8,), sigma), labels) for sigma in (0.1, 1.0, 80.0)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_with_sds_nothing_learns_beside_the_student_and_every_turn_is_its_own(turn):
    module = learning(SDS(), turn=turn)
    assert module.fake_score is module.ratio is None
    assert len(module.configure_optimizers()) == 1
    assert module.updates_after(7) == 7
    assert module.turn_schedule.learners(0) == (True, False)


def test_the_data_s_deviation_is_the_teacher_s_where_the_student_knows_none():
    assert learning(SDS()).sigma_data == 1.0
    with pytest.raises(ValueError, match="sigma_data"):
        distillation(exact([[0.0, 0.0]], [1.0]), SDS(), student=generator(classes=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"student": Denoiser(Points(), EDM(1.0))},
        {"student": Denoiser(mlp(num_classes=2).network, Direct())},
        {"renoise_levels": [0.5]},
        {"start": "unit"},
    ],
    ids=["EDM", "network", "steps", "unit"],
)
def test_a_generator_makes_a_sample_in_one_step_of_its_noise(changes):
    with pytest.raises(ValueError, match="a generator makes a sample of its noise in one step"):
        learning(VSD(), **changes)


def test_a_warm_up_of_nothing_and_a_teacher_of_other_conditions_are_refused():
    with pytest.raises(ValueError, match="fake_score_warmup"):
        learning(SDS(), fake_score_warmup=2)
    with pytest.raises(ValueError, match="same samples and conditions"):
        learning(SDS(), student=generator(classes=3))
    assert takes_classes(3) == Points(3).takes


def test_needs_say_whether_anything_learns_beside_the_student():
    assert [objective.needs.others for objective in (SDS(), VSD(), Adversarial())] == [False, True, True]
    assert not Needs("gradient").others
    assert ring().num_classes == 2
