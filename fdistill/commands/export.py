"""`fdistill export`: a run checkpoint becomes a folder that diffusers loads."""

from pathlib import Path

from fdistill.checkpoints import load_model, read_json
from fdistill.export import export_folder
from fdistill.export.folder import loads_in_stock_diffusers
from fdistill.report import print_table


def export(checkpoint: str, folder: str, report: str | None = None) -> None:
    """Write the EMA weights as safetensors with configuration and model card.

    Args:
        checkpoint: a run's .ckpt file (or an exported folder, to write its card again).
        folder: the folder to write; replaced if it exists.
        report: report.json of `fdistill evaluate`, for the model card.
    """
    model = load_model(checkpoint)
    numbers = None if report is None else read_json(Path(report))
    target = export_folder(model, folder, numbers)
    if numbers is not None:
        print_table(numbers)
    loader = "stock diffusers (ConsistencyModelPipeline)" if loads_in_stock_diffusers(model) else "fdistill"
    print(f"wrote {target}: a {model.kind} of {model.evaluations} network evaluation(s), loaded by {loader}")
