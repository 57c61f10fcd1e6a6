"""`fdistill doctor`: versions, devices, and what is wrong or slow here."""

import importlib.metadata
import importlib.util
import os
import platform

_PACKAGES = (
    "torch",
    "lightning",
    "diffusers",
    "torchmetrics",
    "jsonargparse",
    "omegaconf",
    "wandb",
    "safetensors",
    "torchvision",
)


def doctor() -> None:
    """Print what a bug report needs, and advice; it changes nothing and asks nobody."""
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs")
    versions = {name: _version(name) for name in _PACKAGES}
    for name in ("fdistill", *versions):
        print(f"  {name:<14}{_version(name) or 'not installed'}")
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            print(f"  cuda:{index}       {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    else:
        print(f"  cuda          none (torch built for CUDA {torch.version.cuda or 'no: CPU build'})")
    print(f"  wandb         {_wandb_state()}")
    advice = _advice(versions)
    print("\n".join(["advice:", *(f"  - {line}" for line in advice)]) if advice else "nothing to complain about")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wandb_state() -> str:
    if os.environ.get("WANDB_MODE"):
        return f"WANDB_MODE={os.environ['WANDB_MODE']}"
    known = os.environ.get("WANDB_API_KEY") or "api.wandb.ai" in _read(os.path.expanduser("~/.netrc"))
    return "logged in" if known else "not logged in: runs stay offline"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _advice(versions: dict[str, str | None]) -> list[str]:
    import torch

    lines = []
    if versions["torchvision"] is not None:
        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError, OSError) as error:
            lines.append(
                f"torchvision does not fit this torch and breaks lightning: pip uninstall torchvision ({error})"
            )
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            lines.append("this GPU computes bf16: --trainer.precision bf16-mixed is faster")
        if torch.cuda.device_count() > 1:
            lines.append("several GPUs: --trainer.devices N --trainer.strategy replicated")
    elif torch.get_num_threads() == 1 and (os.cpu_count() or 1) > 1:
        lines.append("torch uses one thread: set OMP_NUM_THREADS to the number of cores")
    if importlib.util.find_spec("diffusers") is None:
        lines.append("diffusers is missing: nothing can be exported; run pip install fdistill again")
    return lines
