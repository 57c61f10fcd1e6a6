"""`fdistill average`: another average of a run's weights, after the run; of a length given, or chosen by a metric."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fdistill.cli.commands import UsageError
from fdistill.cli.commands.yaml_section import data_of_file, features_of_file
from fdistill.core.atomic_files import write_json
from fdistill.core.devices import usable_device
from fdistill.core.places import require_replaceable
from fdistill.data import remembered_data
from fdistill.evaluation.choose_average import LengthChoice, TwoHalves, better
from fdistill.evaluation.features import default_extractor
from fdistill.evaluation.report.length_report import length_figure, print_lengths
from fdistill.evaluation.sources import ModelSource
from fdistill.io.export import export_folder
from fdistill.io.load import load_model
from fdistill.sampling.generator import GenerativeModel
from fdistill.training.averaging.power_ema import LONGEST, POOR, Combination, lengths_within
from fdistill.training.averaging.snapshots import FOLDER, Snapshots, put_average

LENGTHS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25)
COARSE = 4.0  # gain of a combination above which the rounding of float16 is worth a line


def average(
    run: str,
    length: float | None = None,
    lengths: list[float] | None = None,
    metric: str | None = None,
    n: int | None = None,
    repeats: int | None = None,
    seed: int | None = None,
    data: str | None = None,
    features: str | None = None,
    out: str | None = None,
    device: str = "cpu",
) -> None:
    """Average a run's weights anew from its snapshots (PowerAverages), and write the model as a folder.

    Without --length several lengths are measured, one half of the held-out data chooses, the other reports, and the
    numbers are written beside the folder as OUT.json and OUT.png.

    Args:
        run: folder of a run whose callbacks had PowerAverages.
        length: sigma_rel of the average, the standard deviation of its profile over the run's length.
        lengths: the lengths to choose from; a grid within what the snapshots tell, where not given.
        metric: by which the length is chosen; frechet_distance where not given.
        n: samples of each length and half; half of the held-out split, but at most 5000, where not given.
        repeats: how many times to draw, 4 where not given; the numbers are means.
        seed: of the halves, the samples, and the classifier whose features are compared; 0 where not given.
        data: YAML file with a data section; the data that the model was trained on, where not given and remembered.
        features: YAML file with a features section, as for fdistill evaluate.
        out: folder to write, for sample, evaluate and fit; RUN/average where not given. A model of ours that is there
            already is replaced.
        device: where to generate, and to extract the features of a file: cpu, cuda, cuda:1, mps.
    """
    measuring = {"lengths": lengths, "metric": metric, "n": n, "repeats": repeats, "seed": seed}
    measuring |= {"data": data, "features": features}
    given = [f"--{name}" for name, value in measuring.items() if value is not None]
    if length is not None and given:
        raise UsageError(f"--length is the length, and nothing is measured: got {', '.join(given)} too; leave one out")
    target = require_replaceable(Path(run) / "average" if out is None else Path(out), Path(run) / "checkpoints")
    place = usable_device(device)
    snapshots = Snapshots(Path(run) / FOLDER)
    model = load_model(Path(run) / "checkpoints" / "last.ckpt", merge=False).to(place)
    if length is not None:
        found = snapshots.combination(length)
        put_average(model, snapshots.average(found), snapshots.folder)
        _export(model, snapshots, length, found, target, {})
        return
    metric, repeats = metric or "frechet_distance", 4 if repeats is None else repeats
    better(metric)
    combinations = {wanted: snapshots.combination(wanted) for wanted in sorted(lengths or _grid(snapshots))}
    extractor = None if features is None else features_of_file(features, place)
    real = (remembered_data(model.facts) if data is None else data_of_file(data)).in_pixels()
    halves = TwoHalves(real, extractor or default_extractor(real.sample_shape, real.num_classes), n, seed or 0, repeats)
    choice = _measured(model, snapshots, combinations, halves, metric)
    report = _report(choice, halves, combinations, snapshots)
    put_average(model, snapshots.average(combinations[choice.best]), snapshots.folder)
    chosen = {"chosen_by": {"metric": metric, "n": halves.n, "repeats": repeats, "lengths": list(combinations)}}
    print_lengths(report)
    written = [write_json(target.with_name(f"{target.name}.json"), report)]
    written.append(length_figure(report, target.with_name(f"{target.name}.png")))
    _export(model, snapshots, choice.best, combinations[choice.best], target, chosen)
    print("wrote " + ", ".join(str(path) for path in written))


def _grid(snapshots: Snapshots) -> Sequence[float]:
    """The default lengths that are reconstructed well, and those that were tracked."""
    shortest, longest = lengths_within(snapshots.profiles, snapshots.updates) or (LONGEST, 0.0)
    tracked = {profile.length for profile in snapshots.profiles if profile.updates == snapshots.updates}
    return sorted(tracked | {length for length in LENGTHS if shortest <= length <= longest})


def _measured(
    model: GenerativeModel, snapshots: Snapshots, combinations: dict[float, Combination], halves: TwoHalves, metric: str
) -> LengthChoice:
    """Measure the EMA that the checkpoint holds, then give the model one average after the other."""
    source = ModelSource(model)
    ema = halves.rows("run's EMA", source)
    rows = {}
    for length, found in tqdm(combinations.items(), desc="Averages", unit="length"):
        put_average(model, snapshots.average(found), snapshots.folder)
        rows[length] = halves.rows(f"average of length {length:g}", source)
    return LengthChoice(metric, rows, ema)


def _report(
    choice: LengthChoice, halves: TwoHalves, combinations: dict[float, Combination], snapshots: Snapshots
) -> dict[str, Any]:
    report = choice.report()
    for row in report["lengths"]:
        found = combinations[row["length"]]
        row |= {"residual": found.residual, "gain": found.gain}
    return report | {
        "updates": snapshots.updates,
        "snapshots": len(snapshots.profiles),
        "n": halves.n,
        "repeats": halves.repeats,
        "seed": halves.seed,
        "features": halves.extractor.name,
        "data": halves.data.spec(),
    }


def _export(
    model: GenerativeModel,
    snapshots: Snapshots,
    length: float,
    found: Combination,
    target: Path,
    chosen: dict[str, Any],
) -> None:
    """Write the folder; its facts tell which average it holds, and what is doubtful about it."""
    fact = {"length": length, "updates": snapshots.updates, "residual": found.residual, **chosen}
    export_folder(dataclasses.replace(model, facts={**model.facts, "average": fact}), target)
    print(
        f"wrote {target}: the average of length {length:g} after {snapshots.updates:,} updates, of "
        f"{len(snapshots.profiles)} stored ones (residual {found.residual:.2g}, gain {found.gain:.2g})"
    )
    if found.residual > POOR:
        print(f"this is a poor reconstruction: expected a residual of at most {POOR}; store more snapshots")
    if found.gain > COARSE and snapshots.storage == "float16":
        print(f"float16 snapshots are rounded, and this length magnifies it {found.gain:.2g} times: store float32")
