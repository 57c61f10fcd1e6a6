"""From a scheduler of diffusers to what its network predicts, on which path, and where a teacher samples."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdistill.core.weight_files import CheckpointError, as_one_line, brief, checked_number, read_json
from fdistill.theory.noise_levels import karras_grid
from fdistill.theory.paths import DDPMPath
from fdistill.theory.preconditioning import EpsPrediction, VelocityPrediction, VPrediction, X0Prediction

_Prediction = EpsPrediction | VPrediction | X0Prediction | VelocityPrediction
_PREDICTIONS: dict[str, Callable[[DDPMPath, float], _Prediction]]
_PREDICTIONS = {"epsilon": EpsPrediction, "v_prediction": VPrediction, "sample": X0Prediction}
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_MOST_TIMESTEPS, _LARGEST_SHIFT = 2**20, 1000.0
_LAST_FLOW_TIME = 1 - 1e-3  # at 1 the noise ratio is infinite


class StockSchedule(NamedTuple):
    """What a network learned, and the shift that its sampler gives to the times of a flow."""

    preconditioning: _Prediction
    shift: float = 1.0

    def levels(self, num_steps: int) -> Tensor:
        """Where a teacher samples: falling to 0, float64 [num_steps + 1].

        On a path of timesteps EDM's grid between the first and the last of them; along a flow equally spaced times,
        shifted towards noise as its scheduler does: t = shift u / (1 + (shift - 1) u) (arXiv 2403.03206).
        """
        path = self.preconditioning.path
        if isinstance(path, DDPMPath):
            ends = path.noise_ratio(torch.tensor([0.0, 1.0], dtype=torch.float64))
            return karras_grid(num_steps, *ends.tolist())
        first = _LAST_FLOW_TIME / (self.shift - (self.shift - 1) * _LAST_FLOW_TIME)
        u = torch.linspace(first, 0, num_steps + 1, dtype=torch.float64)
        return path.noise_ratio(self.shift * u / (1 + (self.shift - 1) * u))


def read_schedule(file: Path) -> StockSchedule:
    """What scheduler_config.json says.

    Raises:
        CheckpointError: if it is missing, or of a scheduler that no path or prediction here stands for.
    """
    if file.is_dir():
        file = file / "scheduler_config.json"
    given = read_json(file, "the scheduler of this network (--scheduler FILE names another)")
    config = _with_defaults(given, file)
    prediction = config.get("prediction_type")
    if config["_class_name"] in _FLOWS or (prediction == "flow_prediction" and config.get("use_flow_sigmas")):
        return _flow(config, file)
    if "beta_schedule" not in config or config.get("timestep_type", "discrete") != "discrete":
        raise CheckpointError(
            f"{file} is of a {config['_class_name']}: expected one of discrete betas (DDPM, DDIM, PNDM, DPM-Solver, "
            "Euler ...) or of flow matching"
        )
    if given.get("predict_epsilon") is False:  # the word of before diffusers 0.11
        prediction = "sample"
    if not isinstance(prediction, str) or prediction not in _PREDICTIONS:
        known = ", ".join(_PREDICTIONS)
        raise CheckpointError(f"{file}: prediction_type is one of {known}, got {brief(prediction)}")
    noise_alone = bool(config.get("rescale_betas_zero_snr"))
    if noise_alone and prediction == "epsilon":
        raise CheckpointError(
            f"{file}: rescale_betas_zero_snr leaves no signal at the last timestep, where noise predicts nothing: "
            "expected a prediction of v or of the sample"
        )
    with as_one_line(file):
        timesteps = checked_number(config["num_train_timesteps"], "num_train_timesteps", 2, _MOST_TIMESTEPS, True)
        first, last = (checked_number(config[name], name, 0, 1) for name in ("beta_start", "beta_end"))
        betas = _trained_betas(config.get("trained_betas"))
        path = DDPMPath(first, last, timesteps, config["beta_schedule"], betas, noise_alone)
    return StockSchedule(_PREDICTIONS[prediction](path, timesteps - 1.0))


def _trained_betas(values: Any) -> list[float] | None:
    if values is not None and not isinstance(values, list):
        raise ValueError(f"trained_betas is a list of numbers: got {brief(values)}")
    return None if values is None else [checked_number(value, "each of trained_betas", 0, 1) for value in values]


def _flow(config: dict[str, Any], file: Path) -> StockSchedule:
    shift = config.get("flow_shift", config.get("shift", 1.0))
    known = type(shift) in (int, float) and 0 < shift <= _LARGEST_SHIFT
    if config.get("invert_sigmas") or not known:
        raise CheckpointError(
            f"{file}: a flow starts from noise and its shift is positive and at most {_LARGEST_SHIFT:g}, got "
            f"invert_sigmas={brief(config.get('invert_sigmas'))} and shift={brief(shift)}"
        )
    with as_one_line(file):
        timesteps = checked_number(config["num_train_timesteps"], "num_train_timesteps", 1, _MOST_TIMESTEPS)
    return StockSchedule(VelocityPrediction(float(timesteps)), float(shift))


def _with_defaults(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """What its class reads of the configuration, and assumes where it says nothing."""
    import diffusers

    name = config.get("_class_name")
    known = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Scheduler") else None
    if not inspect.isclass(known) or not issubclass(known, diffusers.SchedulerMixin):
        raise CheckpointError(
            f"{file} names no scheduler of diffusers: expected _class_name like DDPMScheduler, got {brief(name)}"
        )
    takes = inspect.signature(known.__init__).parameters
    defaults = {name: each.default for name, each in takes.items() if each.default is not each.empty}
    return {**defaults, **{key: value for key, value in config.items() if key in takes}, "_class_name": name}
