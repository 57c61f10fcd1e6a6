"""Images a second of a student by every way to run it, beside its bare network and its teacher, in one run.

    python tools/benchmark_generation.py --student checkpoints/digits-student --teacher checkpoints/digits-teacher
    python tools/benchmark_generation.py --student checkpoints/digits-student --cifar --batches 1 8 --repeats 3

Ways are timed in turn within each repeat, so that a slow moment of the machine meets all of them; shares are medians of
the repeats' ratios. On the CPU seconds are those that the process computed, so that others' load does not count.
Writes results.json and prints a Markdown table: images/s of the bare network, and the share of it of each way.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.core.atomic_files import write_json
from fdistill.io.export.pipeline import OneStepPipeline
from fdistill.io.export.program import write_program
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SongUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.pictures import image_grid
from fdistill.theory.preconditioning import EDM

Way = Callable[[], object]


def ways(student: GenerativeModel, n: int, folder: Path, programs: bool) -> dict[str, Way]:
    """Every way to make n samples of the same latents, by name; the first is what the others are held against."""
    latents, labels = student.noise(n, 0), student.labels(n)
    device, level = student.device, float(student.sigmas[0])
    pipeline = OneStepPipeline(student)
    z, y = latents.to(device), None if labels is None else labels.to(device)

    @torch.no_grad()
    def bare() -> Tensor:
        return student.denoiser(level * z, z.new_full((n,), level), y)

    found: dict[str, Way] = {
        "bare network": bare,
        "GenerativeModel.sample": lambda: student.sample(latents, labels),
        "fdistill sample": lambda: image_grid(student.decode(student.sample(student.noise(n, 0), student.labels(n)))),
        "OneStepPipeline, pt": lambda: pipeline(n, labels, latents=latents, output_type="pt"),
        "OneStepPipeline, pil": lambda: pipeline(n, labels, latents=latents),
    }
    if programs:
        found |= artefacts(student, latents, labels, folder)
    return found


def artefacts(student: GenerativeModel, latents: Tensor, labels: Tensor | None, folder: Path) -> dict[str, Way]:
    """torch.export's program, and the ONNX graph where its packages are installed; both on the CPU."""
    arguments = (latents,) if labels is None else (latents, labels)
    path = folder / "generator.pt2"
    program = torch.export.load(path if path.exists() else write_program(student, "torch_export", folder)).module()
    found: dict[str, Way] = {"torch.export": torch.no_grad()(lambda: program(*arguments))}
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        import onnxruntime

        path = folder / "generator.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        path = path if path.exists() else write_program(student, "onnx", folder)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = {name: value.numpy() for name, value in zip(("latents", "labels"), arguments, strict=False)}
        found["ONNX Runtime"] = lambda: session.run(None, given)
    return found


def rates(found: dict[str, Way], n: int, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Of the first way median images per second, of the others the median share of it; one untimed call before."""
    for way in found.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in tqdm(range(repeats), desc=f"batch {n}", leave=False):
        for name, way in found.items():
            _wait()
            started = clock()
            way()
            _wait()
            seconds[name].append(clock() - started)
    bare, *others = found
    shares = {
        name: statistics.median(b / a for a, b in zip(seconds[name], seconds[bare], strict=True)) for name in others
    }
    return {bare: n / statistics.median(seconds[bare])} | shares


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cifar_models() -> tuple[GenerativeModel, GenerativeModel]:
    """A student and a teacher of EDM's CIFAR-10 size (DDPM++, 56M parameters) with random weights."""
    torch.manual_seed(0)
    denoiser = Denoiser(SongUNet(num_classes=10), EDM(0.5))
    return GenerativeModel.student(denoiser, 80.0), GenerativeModel.teacher(denoiser, 18, 0.002, 80.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="checkpoints/digits-student")
    parser.add_argument("--teacher", default="checkpoints/digits-teacher")
    parser.add_argument("--cifar", action="store_true", help="networks of CIFAR-10's size in place of the checkpoints")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 128, 500])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-programs", action="store_true", help="without torch.export and ONNX")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_generation"))
    arguments = parser.parse_args()
    student, teacher = cifar_models() if arguments.cifar else map(load_model, (arguments.student, arguments.teacher))
    student.to(arguments.device)
    teacher.to(arguments.device)
    results, clock = {}, time.process_time if arguments.device == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        for n in arguments.batches:
            programs = arguments.device == "cpu" and not arguments.no_programs
            found = ways(student, n, Path(folder), programs)
            latents, labels = teacher.noise(n, 0), teacher.labels(n)
            found[f"teacher, {teacher.evaluations} evaluations"] = lambda z=latents, y=labels: teacher.sample(z, y)
            results[n] = rates(found, n, arguments.repeats, clock)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "results.json", {str(n): row for n, row in results.items()})
    names = list(results[arguments.batches[0]])
    print("| batch | bare network, images/s | " + " | ".join(names[1:]) + " |")
    print("|---" * (len(names) + 1) + "|")
    for n, row in results.items():
        print(f"| {n} | {row[names[0]]:,.4g} | " + " | ".join(f"{row[name]:.1%}" for name in names[1:]) + " |")


if __name__ == "__main__":
    main()
