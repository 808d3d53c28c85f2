"""Convert a layout to a W&B workspace with the package wandb-workspaces, which only this file needs."""

from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from pmf_lightning.tracking.workspace_layout import (
    CONFIG,
    TIME,
    Bars,
    Coordinates,
    Layout,
    Lines,
    Note,
    Panel,
    Pictures,
)

GROUPED_BY = ("Group", "JobType")  # the study, then its arm
_TIME = "RelativeTime(Process)"  # the package's name of W&B's clock of a run


def to_workspace(layout: Layout) -> workspaces.Workspace:
    """Return the workspace of a layout; its ``save`` creates it on W&B."""
    shown = workspaces.And(workspaces.Metric("Group") == layout.group) if layout.group else ""
    return workspaces.Workspace(
        entity=layout.entity,
        project=layout.project,
        name=layout.name,
        sections=[
            workspaces.Section(name=section.name, panels=[_panel(p) for p in section.panels], is_open=section.open)
            for section in layout.sections
        ],
        settings=workspaces.WorkspaceSettings(x_axis="images", max_runs=50),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Metric(name) for name in GROUPED_BY], filters=shown
        ),
    )


def _panel(panel: Panel) -> Any:
    match panel:
        case Lines():
            axis = _TIME if panel.x == TIME else panel.x
            return reports.LinePlot(
                title=panel.title, x=axis, y=list(panel.keys), metric_regex=panel.match, log_y=panel.log or None
            )
        case Pictures():
            return reports.MediaBrowser(
                title=panel.title, media_keys=list(panel.keys), mode="grid", grid_x_axis="step", grid_y_axis="run"
            )
        case Bars():
            return reports.BarPlot(title=panel.title, metrics=list(panel.keys))
        case Coordinates():
            columns = [reports.ParallelCoordinatesPlotColumn(metric=_number(key)) for key in panel.keys]
            return reports.ParallelCoordinatesPlot(title=panel.title, columns=columns)
        case Note():
            return reports.MarkdownPanel(markdown=panel.text)


def _number(key: str) -> Any:
    return reports.Config(key.removeprefix(CONFIG)) if key.startswith(CONFIG) else reports.SummaryMetric(key)
