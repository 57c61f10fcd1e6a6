"""A student learns from a teacher that is guided inside an interval or by a weaker one; a teacher keeps its sampler."""

import pytest
import torch
from tiny_runs import distillation, fit, mlp, moved, ring, teacher_training, weights

from fdistill.io.export import export_folder
from fdistill.io.load import load_model
from fdistill.models.guidance import Guidance
from fdistill.objectives import DiffInstruct, NoisedSamples
from fdistill.sampling import GDDIM, Heun
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import GivenGrid


class Watched(DiffInstruct):
    """Keeps what it was given."""

    def loss(self, at: NoisedSamples):
        self.__dict__["seen"] = at
        return super().loss(at)


def guided(**changes):
    arguments = {
        "guidance": 2.5,
        "student": mlp(num_classes=2, seed=1),
        "objective": Watched(),
        "discriminator": "none",
    }
    return distillation(mlp(num_classes=2), **arguments | changes)


@pytest.mark.parametrize(
    "settings", [{"guidance_interval": [0.4, 1.5]}, {"guide": mlp(seed=3)}, {"guide": mlp(num_classes=2, seed=3)}]
)
def test_the_student_learns_from_the_guided_teacher(settings):
    module = guided(**settings)
    before = weights(module)
    fit(module, 2, ring(batch_size=64))
    at, guide = module.objective.seen, settings.get("guide")
    expected = Guidance(2.5, *settings.get("guidance_interval", ()), guide=guide)(
        module.teacher, at.x_t, at.sigma, at.condition
    )
    torch.testing.assert_close(at.teacher, expected)
    assert not torch.allclose(at.teacher, module.teacher(at.x_t, at.sigma, at.condition))
    assert moved(before, module, "student")
    assert not moved(before, module, "guide")
    assert not moved(before, module, "teacher")


def test_a_guide_stays_frozen_out_of_the_checkpoint_and_in_evaluation_mode(tmp_path):
    guide = export_folder(GenerativeModel.teacher(mlp(seed=3), 4, 0.1, 9.0), tmp_path / "guide")
    module = guided(guide=str(guide), guidance_interval=[0.1, 3.0])
    module.train()
    assert not module.guide.training
    assert not any(parameter.requires_grad for parameter in module.guide.parameters())
    fit(module, 2).save_checkpoint(tmp_path / "student.ckpt")
    assert not any(name.startswith("guide") for name in module.state_dict())
    facts = load_model(tmp_path / "student.ckpt").facts
    assert (facts["guidance"], facts["guidance_interval"], facts["guide"]) == (2.5, [0.1, 3.0], str(guide))
    again = guided(guide=str(guide), guidance_interval=[0.1, 3.0])
    fit(again, 4, resume_from=tmp_path / "student.ckpt")
    straight = guided(guide=str(guide), guidance_interval=[0.1, 3.0])
    fit(straight, 4)
    assert all(torch.equal(value, straight.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_teacher_beside_the_student_is_guided_and_sampled_as_it_is():
    module = guided(guide=mlp(seed=3), guidance_interval=[0.1, 3.0])
    model = module.teacher_model()
    assert model.guidance.guide is module.guide
    assert model.guidance.interval == (0.1, 3.0)
    assert model.evaluations < 70
    assert guided().generative_model().facts["guidance"] == 2.5
    assert "guide" not in guided().generative_model().facts


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guidance": 1.0, "guidance_interval": [0.1, 1.0]}, "scale"),
        ({"guidance": 1.0, "guide": mlp()}, "scale"),
        ({"guidance_interval": [1.0, 0.1]}, "sigma_high"),
        ({"guide": mlp(dim=3)}, "condition"),
        ({"guide": mlp(num_classes=5)}, r"got \(2,\) and labels \(5"),
    ],
)
def test_what_cannot_guide_is_refused_before_the_first_turn(settings, words):
    with pytest.raises(ValueError, match=words):
        guided(**settings)


def test_a_teacher_run_keeps_its_sampler_and_grid(tmp_path):
    module = teacher_training(sampler=GDDIM(1.2), grid=GivenGrid([5.0, 1.0, 0.2, 0.0]))
    fit(module, 2).save_checkpoint(tmp_path / "teacher.ckpt")
    model = load_model(tmp_path / "teacher.ckpt")
    assert model.sampler.spec() == GDDIM(1.2).spec()
    assert model.sigmas.tolist() == [5.0, 1.0, 0.2, 0.0]
    assert model.evaluations == 3
    beside = distillation(str(tmp_path / "teacher.ckpt")).teacher_model()
    assert (beside.sampler.spec(), beside.sigmas.tolist()) == (model.sampler.spec(), model.sigmas.tolist())
    noise = model.noise(5, 0)
    assert torch.equal(model.sample(noise), module.generative_model().sample(noise))
    assert type(teacher_training().generative_model().sampler) is Heun


def test_a_grid_stands_alone():
    with pytest.raises(ValueError, match="num_steps"):
        teacher_training(grid=GivenGrid([5.0, 1.0, 0.0]), num_steps=9)
