"""fdistill: distil a diffusion model into a generator that needs one network evaluation.

What stands in `__all__` is imported when it is first used, so that `import fdistill` costs neither torch nor time.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fdistill.core.moved_names import understand_moved_names

if TYPE_CHECKING:
    from fdistill.evaluation.evaluate import evaluate
    from fdistill.io.export import export_folder as export
    from fdistill.io.load import load_model as load
    from fdistill.sampling.draw import draw as sample
    from fdistill.sampling.pictures import show
    from fdistill.training.best_of import best_of
    from fdistill.training.distill import distill

    __version__: str

__all__ = ["__version__", "best_of", "distill", "evaluate", "export", "load", "sample", "show"]

_ROOMS = {
    "best_of": ("fdistill.training.best_of", "best_of"),
    "distill": ("fdistill.training.distill", "distill"),
    "evaluate": ("fdistill.evaluation.evaluate", "evaluate"),
    "export": ("fdistill.io.export", "export_folder"),
    "load": ("fdistill.io.load", "load_model"),
    "sample": ("fdistill.sampling.draw", "draw"),
    "show": ("fdistill.sampling.pictures", "show"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fdistill")
    if name not in _ROOMS:
        raise AttributeError(f"module 'fdistill' has no attribute {name!r}")
    module, function = _ROOMS[name]
    return getattr(importlib.import_module(module), function)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `fdistill.export` the function: exported folders import the module that had this name before."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _ROOMS or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
understand_moved_names()
