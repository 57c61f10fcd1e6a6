"""`fdistill dashboard`: how runs go, as one page, or as a workspace of Weights & Biases with the same panels."""

from pathlib import Path

from fdistill.cli.commands import UsageError
from fdistill.core.places import require_writable
from fdistill.evaluation.report.dashboard import dashboard_page, read_runs
from fdistill.evaluation.report.workspace import save_workspace, workspace


def dashboard(runs: list[str], out: str = "runs/dashboard.html", wandb: str | None = None) -> None:
    """Draw what runs have logged, several overlaid, with what one sees when all is well; a running run too.

    Args:
        runs: run folders, which hold metrics.jsonl.
        out: page to write; it needs nothing beside it.
        wandb: ENTITY/PROJECT in which to save the same panels as a workspace; needs wandb-workspaces and a login.
    """
    if not runs and wandb is None:
        raise UsageError("dashboard needs run folders, or --wandb ENTITY/PROJECT: got neither")
    entity, _, project = (wandb or "").partition("/")
    if wandb is not None and (not entity or not project or "/" in project):
        raise UsageError(f"--wandb names a project as ENTITY/PROJECT: got {wandb!r}")
    if runs:
        require_writable(Path(out))
        print(f"wrote {dashboard_page(read_runs(runs), out)}")
    if wandb is not None:
        print(f"saved {save_workspace(workspace(entity, project))}")
