"""The panels of `fdistill.evaluation.report.panels` as a workspace of Weights & Biases (package wandb-workspaces)."""

from typing import TYPE_CHECKING

from fdistill.evaluation.report.panels import GROUPS, PICTURES, Group, Panel, beside

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "fdistill"
TURN = "trainer/global_step"
ACROSS = 3  # panels side by side


def workspace(entity: str, project: str) -> "Workspace":
    """Return the workspace of a project; it is built offline.

    Raises:
        ValueError: without wandb-workspaces.
    """
    try:
        from wandb_workspaces import workspaces
    except ModuleNotFoundError as error:
        raise ValueError(
            "a W&B workspace needs wandb-workspaces: it is not installed; pip install 'fdistill[dashboard]'"
        ) from error
    sections = [_pictures(), *map(_section, GROUPS)]
    return workspaces.Workspace(
        entity, project, NAME, sections, workspaces.WorkspaceSettings(x_axis=TURN, sort_panels_alphabetically=False)
    )


def save_workspace(built: "Workspace") -> str:
    """Save it and return where it is.

    Raises:
        ValueError: without a login.
    """
    import wandb

    if not wandb.login(prompt=False):
        raise ValueError("saving a workspace needs a login to Weights & Biases: got none; run wandb login first")
    return built.save().url


def _section(group: Group) -> "Section":
    """One panel for each of the group's, and before them what one sees in each."""
    from wandb_workspaces.reports.v2 import LinePlot, MarkdownPanel
    from wandb_workspaces.workspaces import Section, SectionLayoutSettings

    said = "\n".join(f"- **{panel.title}.** {panel.well}" for panel in group.panels)
    plots = [LinePlot(title=panel.title, x=TURN, **_lines(panel)) for panel in group.panels]
    layout = SectionLayoutSettings(columns=ACROSS, rows=-(-(len(plots) + 1) // ACROSS))
    return Section(
        name=group.title, panels=[MarkdownPanel(markdown=said), *plots], is_open=True, layout_settings=layout
    )


def _lines(panel: Panel) -> dict[str, str | list[str]]:
    """The numbers of a panel: by name, or by pattern where their number is not known."""
    if any(name.endswith("*") for name in panel.names):
        return {"metric_regex": panel.pattern}
    return {"y": [shown for name in panel.names for shown in (name, *beside(name).values())]}


def _pictures() -> "Section":
    from wandb_workspaces.reports.v2 import MarkdownPanel, MediaBrowser
    from wandb_workspaces.workspaces import Section

    panels = [MarkdownPanel(markdown=PICTURES.well), MediaBrowser(title=PICTURES.title, media_keys=[*PICTURES.names])]
    return Section(name=PICTURES.title, panels=panels, is_open=True)
