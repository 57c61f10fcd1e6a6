"""A teacher makes the first step of its student: what is computed, what it costs, where it cannot be."""

import pytest
import torch
from tiny_runs import mlp

import fdistill
from fdistill.models.guidance import Guidance
from fdistill.sampling.first_step import with_first_step_of
from fdistill.sampling.generator import GenerativeModel

LEVELS = (2.0, 0.8, 0.3)


def models(levels=LEVELS, scale=2.0, **facts):
    student = GenerativeModel.student(mlp(3, seed=1), levels, facts)
    return student, GenerativeModel.teacher(mlp(3), 8, 0.002, 80.0, guidance=scale)


def test_the_teacher_denoises_at_the_first_level_and_the_student_at_the_others():
    student, teacher = models()
    labels, noise = torch.arange(6) % 3, student.noise(6, 0)
    with torch.no_grad():
        x = Guidance(2.0)(teacher.denoiser, LEVELS[0] * noise[:, 0], LEVELS[0], labels)
        for step, level in enumerate(LEVELS[1:], 1):
            x = student.denoiser(x + level * noise[:, step], torch.full((6,), level), labels)
    mixed = with_first_step_of(student, teacher)
    assert torch.equal(mixed.sample(noise, labels), x)
    assert torch.equal(fdistill.sample(student, 6, 0, [0, 1, 2], first_step=teacher), x)
    assert mixed.evaluations == student.evaluations + 1  # guided
    assert not torch.equal(student.sample(noise, labels), x)


def test_it_is_guided_as_the_student_learned_it():
    student, teacher = models(guidance=3.0, guidance_interval=[1.0, 5.0])
    guidance = with_first_step_of(student, teacher).first_step[1]
    assert guidance == Guidance(3.0, 1.0, 5.0)


def test_a_student_that_is_its_own_teacher_is_not_changed():
    student, _ = models()
    itself = GenerativeModel.teacher(student.denoiser, 8, 0.002, 80.0)
    noise = student.noise(6, 0)
    assert torch.equal(
        with_first_step_of(student, itself).sample(noise, torch.zeros(6).long()),
        student.sample(noise, torch.zeros(6).long()),
    )


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        (lambda: models(LEVELS[:1]), "one step"),
        (lambda: models()[::-1], "a teacher makes"),
        (lambda: (models()[0],) * 2, "holds a student"),
        (lambda: (models()[0], GenerativeModel.teacher(mlp(2), 8, 0.002, 80.0)), "conditions"),
    ],
)
def test_what_cannot_be_is_refused(pair, named):
    with pytest.raises(ValueError, match=named):
        with_first_step_of(*pair())
