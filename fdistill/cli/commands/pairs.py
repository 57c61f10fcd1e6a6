"""`fdistill pairs`: what a teacher's ODE makes of latents, for objectives that regress to it (DMD)."""

from pathlib import Path

from fdistill.core.devices import usable_device
from fdistill.core.places import require_writable
from fdistill.data.prompts import checked_prompts
from fdistill.data.teacher_pairs import Facts, TeacherPairs, facts_of, read_facts
from fdistill.io.load import load_model
from fdistill.io.stock_pipeline import PIPELINE, pipeline_folder


def pairs(
    teacher: str,
    out: str,
    n: int = 5000,
    seed: int = 0,
    batch_size: int = 500,
    device: str = "cpu",
    prompts: str | None = None,
    overwrite: bool = False,
) -> None:
    """Sample a teacher with its own sampler and keep the latents; a file that holds these pairs is left as it is.

    Args:
        teacher: a run's .ckpt file, or a folder written by fdistill export.
        out: file to write, a .safetensors of latents, samples and, where conditional, labels: all classes in turn.
        n: how many pairs.
        seed: seed of the latents, which are drawn on the CPU whatever the device.
        batch_size: latents at once.
        prompts: folder of fdistill encode-prompts, whose prompts a text-to-image teacher is given, in turn.
        device: where to compute: cpu, cuda, cuda:1, mps.
        overwrite: make them again and replace whatever file is there.
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ValueError(f"pairs are written as .safetensors: got {out!r}; name the file like that")
    if require_writable(path).is_dir():
        raise ValueError(f"pairs are written to a file: {out} is a folder; name a file in it")
    model = load_model(teacher)
    wanted, condition = facts_of(model, n, seed, teacher), None
    if (PIPELINE in model.facts) != (prompts is not None):
        got = "none" if prompts is None else prompts
        raise ValueError(f"pairs of a text-to-image teacher, and no others, have --prompts FOLDER: got {got}")
    if prompts is not None:
        files = checked_prompts(prompts, str(pipeline_folder(model)))
        wanted, condition = wanted | {"prompts": files.description.request}, files.condition(range(min(n, len(files))))
    if path.exists() and not overwrite and _holds(path, wanted):
        print(f"{path} holds these {n} pairs already; nothing was computed")
        return
    made = TeacherPairs.make(model.sampling_on(usable_device(device)), n, seed, teacher, batch_size, condition)
    made.facts |= wanted
    made.save(path)
    evaluations = f"{model.evaluations} network evaluation{'s' * (model.evaluations > 1)}"
    print(f"wrote {n} pair{'s' * (n > 1)} of {evaluations} each to {path}")


def _holds(path: Path, wanted: Facts) -> bool:
    """True for a file of the wanted pairs, wherever their teacher lay; ValueError for any other file."""
    try:
        found = read_facts(path)
    except ValueError:
        found = {}
    if not found.keys() >= wanted.keys():
        raise ValueError(f"{path} is there and holds no pairs of fdistill: name another file, or give --overwrite")
    different = [name for name in wanted if name != "teacher" and found[name] != wanted[name]]
    if different:
        told = ", ".join(f"{name} {found[name]} instead of {wanted[name]}" for name in different)
        raise ValueError(f"{path} holds other pairs ({told}): name another file, or give --overwrite")
    return True
