"""Where modules were before the rooms were laid anew: checkpoints, configurations and exported folders name them so."""

import importlib
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

_MOVED = {
    "callbacks": "training.callbacks",
    "compression": "training.parallel.compression",
    "decoders": "models.vae",
    "denoiser": "models.denoiser",
    "divergences": "theory.divergences",
    "export": "io.export",
    "features": "evaluation.features",
    "grids": "sampling.grids",
    "guidance": "models.guidance",
    "log_ratio": "objectives.log_ratio",
    "loggers": "training.loggers",
    "loss_weights": "theory.loss_weights",
    "metrics": "evaluation.metrics",
    "modules": "training",
    "networks": "models.networks",
    "noise_levels": "theory.noise_levels",
    "paths": "theory.paths",
    "power_ema": "training.averaging.power_ema",
    "preconditioning": "theory.preconditioning",
    "rewards": "objectives.rewards",
    "samplers": "sampling",
    "schedules": "theory.schedules",
    "strategies": "training.parallel",
}
_CLASSES = {"fdistill.theory.loss_weights.LearnedUncertainty": "fdistill.models.learned_uncertainty.LearnedUncertainty"}
_OLD = re.compile(rf"fdistill\.({'|'.join(_MOVED)})(?=\.|$)")


def todays_name(name: str) -> str:
    """The full name of today of a module or class that had one before; any other text as it is."""
    today = _OLD.sub(lambda found: f"fdistill.{_MOVED[found[1]]}", name, count=1) if _OLD.match(name) else name
    return _CLASSES.get(today, today)


def todays_names(value: Any) -> Any:
    """Plain values with the names of today, wherever there is one in them."""
    if isinstance(value, str):
        return todays_name(value)
    if isinstance(value, dict):
        return {key: todays_names(item) for key, item in value.items()}
    return [todays_names(item) for item in value] if isinstance(value, list) else value


class MovedModules(MetaPathFinder, Loader):
    """Imports a module by the name that it had before: exported folders hold such an import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of the names before alone."""
        return None if todays_name(fullname) == fullname else spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of today."""
        module = importlib.import_module(todays_name(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed; its own specification, which import took away, comes back."""
        assert module.__spec__ is not None  # import gave it the one of `find_spec`
        module.__spec__ = module.__spec__.loader_state


def understand_moved_names() -> None:
    """Let Python import by the names before; first of all, or a module in a moved package would be imported twice."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())
