"""What the first step of a student is held to: where the teacher's own trajectory leads from the same noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.objectives import Objective
from fdistill.sampling import Sampler, Start
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.student_steps import start_scale

_SAME = 1e-6  # relative difference of two noise levels that are meant to be one


class Anchor(NamedTuple):
    """A part of the teacher's grid, from the student's first level down, and how it is followed."""

    sampler: Sampler
    sigmas: Tensor
    start: Start

    @classmethod
    def of(
        cls, objective: Objective, teacher: GenerativeModel, levels: tuple[float, ...], start: Start
    ) -> "Anchor | None":
        """For an objective that asks for one; None for any other.

        Raises:
            ValueError: for a student of one step, a teacher that draws noise, or one that makes too few steps.
        """
        after, name = objective.needs.anchor, type(objective).__name__
        if not after:
            return None
        if len(levels) == 1:
            raise ValueError(f"{name} is for a student of several steps: expected renoise_levels, got none")
        sampler = teacher.sampler
        if sampler is None or sampler.is_stochastic:
            raise ValueError(
                f"{name} follows a trajectory of the teacher, and {type(sampler).__name__} draws noise: export the "
                "teacher with --sampler DDIM or Heun"
            )
        below = [level for level in teacher.sigmas.tolist() if level < levels[0] * (1 - _SAME)]
        if len(below) < after:
            raise ValueError(
                f"{name} has its anchor after {after} steps of the teacher: expected at most {len(below)}, the levels "
                f"of its grid below {levels[0]:g}; export it with more --steps"
            )
        return cls(sampler, torch.tensor([levels[0], *below[:after]], dtype=torch.float64), start)

    @torch.no_grad()
    def __call__(self, teacher: Denoiser, z: Tensor, condition: Condition, guidance: float | Guidance) -> Tensor:
        """The D [B, *sample_shape] that makes x_s = D + s / s_1 (x_1 - D), for x_1 the start and x_s the teacher's.

        Along a flow from its end that is the published target of the velocity, (z - x_t) / (1 - t).

        Args:
            teacher: D_p.
            z: standard normal [B, *sample_shape], of the student's first step.
            condition: of B samples, or empty.
            guidance: of the teacher.
        """
        highest, lowest = float(self.sigmas[0]), float(self.sigmas[-1])
        share, scale = lowest / highest, start_scale(highest, self.start)
        x = self.sampler(teacher, z * (scale / highest), self.sigmas, condition, guidance)
        return (x - share * scale * z) / (1 - share)
