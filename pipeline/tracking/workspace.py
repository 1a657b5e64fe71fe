"""A view in W&B that opens on a sweep's comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.experiment.graph import Graph
from pipeline.tracking.comparison import summary_run_id
from pipeline.tracking.runs import run_id

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def comparison_workspace(sweep: str, entity: str, project: str, graph: Graph) -> Workspace:
    """The view, not saved yet.

    It selects the runs of the sweep's stages by id: a stage that several sweeps share has the group of the one that ran it first.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    def lines(x: str, *metrics: str) -> list[panels.LinePlot]:
        return [panels.LinePlot(x=x, y=[metric], title=metric) for metric in metrics]

    def section(title: str, *shown: list[panels.LinePlot] | list[panels.WeavePanelSummaryTable]) -> workspaces.Section:
        return workspaces.Section(name=title, panels=[panel for group in shown for panel in group], is_open=True)

    runs = [*map(run_id, graph.stages), summary_run_id(sweep, graph)]
    tables = [panels.WeavePanelSummaryTable(table_name=table) for table in ("gains", "differences", "pass_at_k_table")]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"{sweep}: RL gains by prior",
        sections=[
            section("Comparison", tables),
            section("RL, at equal steps", lines("step", "reward_raw", "entropy", "completions/mean_length", "frac_reward_zero_std")),
            section("RL, at equal rollouts", lines("rollouts_generated", "validation/pass@1", "reward_raw")),
            section("Pre-training", lines("tokens", "perplexity", "entropy", "head_mass", "tail_mass")),
        ],
        runset_settings=workspaces.RunsetSettings(filters=[workspaces.Metric("ID").isin(runs)]),
    )
