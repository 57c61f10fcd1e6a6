"""`fdistill diagnose`: does a teacher's deterministic sampler crowd its samples together, and why."""

from pathlib import Path

from fdistill.cli.commands.yaml_section import data_of_file
from fdistill.core.atomic_files import write_json
from fdistill.core.devices import usable_device
from fdistill.core.places import require_writable
from fdistill.data import remembered_data
from fdistill.evaluation.report.teacher_figure import teacher_figure
from fdistill.evaluation.teacher_diagnosis import diagnose_teacher
from fdistill.io.load import load_model


def diagnose(
    checkpoint: str,
    data: str | None = None,
    n: int | None = None,
    repeats: int = 4,
    seed: int = 0,
    steps: int | None = None,
    eta: float = 1.0,
    out: str = "runs/diagnosis",
    device: str = "cpu",
) -> None:
    """Compare a teacher's deterministic and stochastic samples with real data; writes diagnosis.json and a picture.

    Args:
        checkpoint: a teacher: a run's .ckpt file, or a folder written by fdistill export.
        data: YAML file with a data section; the data that it was trained on, where not given and remembered.
        n: samples of each kind; 1000, or as many as are held out, where not given.
        repeats: how many times to draw; the numbers are means, with their ranges.
        seed: seed of the samples and of the classifier whose features are compared.
        steps: of EDM's grid, for the deterministic sampler; the stochastic one has as many evaluations. The teacher's
            own grid where not given.
        eta: stochasticity of the other sampler, GDDIM(eta).
        out: folder to write into.
        device: where to compute: cpu, cuda, cuda:1; in double precision, which mps has not.
    """
    folder, place = require_writable(Path(out) / "diagnosis.json").parent, usable_device(device)
    if place.type == "mps":
        raise ValueError("diagnose computes in double precision, which mps has not: use cpu or cuda")
    model = load_model(checkpoint).sampling_on(place)
    real = remembered_data(model.facts) if data is None else data_of_file(data)
    found = diagnose_teacher(model, real, n, seed, steps, eta, repeats)
    written = write_json(folder / "diagnosis.json", {"checkpoint": checkpoint, **found.report})
    picture = teacher_figure(found.report, found.curve, found.best, found.samples, folder / "diagnosis.png")
    print(found.report["verdict"])
    print(f"wrote {written}, {picture}")
