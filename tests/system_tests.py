"""Which tests are of the whole system: those that train, or start a command or a process, themselves or by a helper."""

import inspect
import sys
from pathlib import Path
from types import CodeType, FunctionType

TESTS = Path(__file__).parent
STARTS = {
    "Trainer",
    "training_step",
    "train_classifier",
    "ClassifierFeatures",
    "evaluate_models",
    "main",
    "fork",
    "spawn",
    "subprocess",
    "distill",
    "NotebookClient",
}


def starts_something(part, known):
    """Whether a function or class of tests/ names what starts something, or another part of tests/ that does.

    Args:
        part: anything; what is no function or class of tests/ starts nothing.
        known: answers of earlier calls, to which this one adds.
    """
    part = inspect.unwrap(part)
    module = sys.modules.get(part.__module__) if isinstance(part, FunctionType | type) else None
    if not Path(getattr(module, "__file__", None) or "").is_relative_to(TESTS):
        return False
    if part not in known:
        known[part] = False  # while it is looked at, for those that call themselves
        functions = [part] if isinstance(part, FunctionType) else filter(inspect.isfunction, vars(part).values())
        known[part] = any(
            name in STARTS or starts_something(function.__globals__.get(name), known)
            for function in functions
            for name in _names(function.__code__)
        )
    return known[part]


def _names(code):
    """What code, and the code inside it, looks up."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return {*code.co_names, *(name for each in inner for name in _names(each))}
