"""Text-to-image networks of several families in three roles on one base: the gradients of separate networks."""

import dataclasses
import functools

import pytest
import torch
from shared_roles import KEEPS, error_beside_separate
from text_teachers import teacher_and_prompts

from fdistill.models.condition import Condition
from fdistill.objectives import SiDA
from fdistill.theory.noise_levels import LogNormal
from fdistill.training import DistillationModule

FAMILIES = {
    "sd": 1e-10,
    "sdxl": 1e-10,
    "sd3": 1e-5,
    "flux": 1e-5,
    "pixart": 1e-10,
    "sana": 1e-5,
}
"""How far gradients are apart: some networks of diffusers round to float32 inside, whatever they are given."""


@pytest.fixture(scope="module")
def known(folders):
    return functools.cache(lambda name: teacher_and_prompts(folders(name)[0], name))


@pytest.mark.parametrize(
    ("checkpointed", "dtype"),
    [
        pytest.param(False, "float32", id=""),
        pytest.param(True, "float32", id="checkpointed"),
        pytest.param(True, "int8", id="int8", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "sd" else [pytest.mark.slow]) for name in FAMILIES]
)
def test_families_learn_as_separate_networks(name, checkpointed, dtype, known):
    """SiDA differentiates teacher and fake score by their input, and the discriminator reads the fake score.

    On a base in int8 the separate networks have its rounded weights in float64.
    """
    teacher, prompts = known(name)
    teacher.denoiser.double()
    doubled = {key: value.double() if value.is_floating_point() else value for key, value in prompts.condition.items()}
    prompts.x, prompts.condition = prompts.x.double(), Condition(doubled)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)

    def build(given=None, **changes):
        start = teacher if given is None else dataclasses.replace(teacher, denoiser=given)
        arguments = {
            "noise_levels": LogNormal(-0.5, 1.0),
            "student_times": [999] if "timesteps" in str(teacher.denoiser.preconditioning.spec()) else [1.0],
            "start": "unit",
            "turn": "fused",
            "discriminator": "fake_score",
            "gradient_checkpointing": checkpointed,
            "teacher_dtype": dtype if given is None else "float32",
        }
        return DistillationModule(start, SiDA(0.1), **arguments | KEEPS | changes)

    try:
        error = error_beside_separate(build, 1, lambda: prompts, {"rank": 2, "alpha": 3.0, "targets": "attention"})
    finally:
        torch.set_default_dtype(before)
    assert error <= FAMILIES[name]
