"""`fdistill export`: a run checkpoint becomes a folder that diffusers loads."""

import json
from pathlib import Path
from typing import Any

from fdistill.checkpoints import CheckpointError, load_model, read_json
from fdistill.commands.checked import require_writable
from fdistill.export import export_folder
from fdistill.export.folder import loads_in_stock_diffusers
from fdistill.generative_model import GenerativeModel
from fdistill.report import print_table


def export(checkpoint: str, folder: str, report: str | None = None) -> None:
    """Write a folder that diffusers loads: the averaged weights as safetensors, configuration and model card.

    Args:
        checkpoint: a run's .ckpt file, or an exported folder whose card is to be written again.
        folder: the folder to write; one that is there already is replaced.
        report: report.json of fdistill evaluate, whose numbers the model card then tells.
    """
    require_writable(Path(folder) / "README.md")
    model = load_model(checkpoint)
    numbers = None if report is None else _numbers(Path(report), model, checkpoint)
    target = export_folder(model, folder, numbers)
    if numbers is not None and model.kind == "student":
        print_table(numbers)
    loader = "stock diffusers (ConsistencyModelPipeline)" if loads_in_stock_diffusers(model) else "fdistill"
    evaluations = f"{model.evaluations} network evaluation{'s' * (model.evaluations > 1)}"
    print(f"wrote {target}: a {model.kind} of {evaluations} per sample, loaded by {loader}")


def _numbers(path: Path, model: GenerativeModel, checkpoint: str) -> dict[str, Any]:
    """The report, if it measured this very model."""
    report = read_json(path, "a report.json of fdistill evaluate")
    if not isinstance(report.get("student"), dict) or "student_facts" not in report:
        raise CheckpointError(f"{path} is no report of fdistill evaluate: it has no student row and facts")
    if report.get(f"{model.kind}_facts") != json.loads(json.dumps(model.facts)):
        raise CheckpointError(
            f"{path} measured another model than {checkpoint}: run fdistill evaluate --checkpoint {checkpoint} first"
        )
    return report
