"""Write the results of a sweep: results.csv, samples.parquet, report.html and report.md."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import jinja2

from pipeline.compare import Arm, Evaluation, arms, result_rows, shown_ks, write_results, write_samples
from pipeline.graph import Graph
from pipeline.report import plots, tables
from pipeline.store import Home, write_text_atomically

_TEMPLATE = Path(__file__).parent / "template.html.j2"
_EXAMPLES_PER_CELL = 3


def write_comparison(
    name: str, description: str, graph: Graph, evaluations: list[Evaluation], rows: list[dict[str, Any]], home: Home
) -> None:
    """All files of the comparison; `rows` are the `summary_rows` of the evaluations."""
    folder = home.sweep(name)
    write_results(folder / "results.csv", list(result_rows(name, evaluations)))
    write_samples(folder / "samples.parquet", graph, home)
    write_text_atomically(folder / "report.md", _markdown(name, description, rows))
    write_text_atomically(folder / "report.html", _html(name, description, graph, evaluations, rows, home))


def _markdown(name: str, description: str, rows: list[dict[str, Any]]) -> str:
    return f"# Sweep {name}\n\n{html.escape(description, quote=False)}\n\n{tables.markdown_table(rows)}\n{_NOTE}\n"


_NOTE = (
    "Entropy (nats) and perplexity are those of the model that RL starts from, on held-out text. Gain = after RL minus before, paired "
    "per problem; intervals are 95% bootstraps over problems (and over seeds, where there are several)."
)


def _html(name: str, description: str, graph: Graph, evaluations: list[Evaluation], rows: list[dict[str, Any]], home: Home) -> str:
    compared = arms(evaluations)
    ks = shown_ks(evaluations)
    figures = []
    if compared and ks:
        figures.append(("pass@k before and after RL", plots.pass_at_k_curves(compared), "Dashed: before. Bands: 95% intervals."))
        if any(arm.after for arm in compared):
            figures.append((f"Gain in pass@{ks[0]}", plots.gains(compared, ks[0]), "An interval that crosses 0 shows no gain."))
            rl_panels = [
                ("reward_raw", "reward"), ("entropy", "entropy (nats)"), ("completions/mean_length", "response tokens"),
                ("step_time", "seconds per step"),
            ]  # fmt: skip
            curve = plots.training_curves(compared, home, "rl", rl_panels, x="step", x_label="RL step", smooth=True)
            figures.append(("RL dynamics", curve, "Running means over a tenth of the run."))
            figures += _validation_figures(compared, home)
        if any(evaluation.milestone for evaluation in evaluations):
            curve = plots.milestone_curves(compared, evaluations, ks)
            figures.append(("Checkpoints along the way", curve, "Each evaluated like the last, on held-out text and on the problems."))
        pretrain_panels = [("perplexity", "perplexity"), ("entropy", "entropy (nats)"), ("tail_mass", "tail mass")]
        for kind, title in (("pretrain", "Pre-training"), ("midtrain", "Mid-training")):
            if any(kind in evaluation.plan.chain for arm in compared for evaluation in arm.before):
                curve = plots.training_curves(compared, home, kind, pretrain_panels, x="tokens", x_label="tokens", smooth=False)
                figures.append((title, curve, "Measured on the training batches; the first tenth is not drawn."))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        description=description,
        note=_NOTE,
        headings=tables.headings(tables.pass_keys(rows)),
        rows=[tables.cells(row, tables.pass_keys(rows)) for row in rows],
        figures=figures,
        examples=_examples(graph, home),
        base=graph.cells[0].base if graph.cells else "pretrain",
        sources=_sources(graph, home),
    )


def _validation_figures(compared: list[Arm], home: Home) -> list[tuple[str, str, str]]:
    """pass@k while RL ran, against steps and against rollouts: priors whose groups lack signal sample more for the same step."""
    recipes = [arm.before[0].plan.cell.recipe.rl for arm in compared]
    samples = {rl.validation.samples for rl in recipes if rl is not None and rl.validation is not None}
    if not samples:
        return []
    panels = [(f"validation/pass@{k}", f"pass@{k}") for k in sorted({1, min(samples)})] + [("validation/length", "response tokens")]
    return [
        (
            f"Validation during RL, by {label}",
            plots.training_curves(compared, home, "rl", panels, x=x, x_label=label, smooth=False),
            "On problems of the RL split that are not trained on.",
        )
        for x, label in (("step", "steps"), ("rollouts_generated", "rollouts"))
    ]


def _examples(graph: Graph, home: Home) -> list[dict[str, Any]]:
    """A few problems of the first cell, with the greedy response before and after RL."""
    import pyarrow.parquet as pq

    if not graph.cells:
        return []
    plan = graph.cells[0]
    greedy: dict[str, dict[str, tuple[str, bool]]] = {}
    for after, node in plan.evaluations.items():
        folder = node.folder(home)
        if folder.record() is None:
            continue
        table = pq.read_table(folder.export / "samples.parquet", filters=[("sample", "=", -1)])
        for row in table.select(["problem_id", "text", "correct"]).to_pylist():
            greedy.setdefault(row["problem_id"], {})[after] = (row["text"], row["correct"])
    return [{"cell": plan.cell.id, "problem": p, "responses": r} for p, r in list(greedy.items())[:_EXAMPLES_PER_CELL]]


def _sources(graph: Graph, home: Home) -> list[dict[str, str]]:
    """Where every number comes from: stage, commit, seconds and versions."""
    found = []
    for node in graph.stages.values():
        record = node.folder(home).record()
        if record is None:
            found.append({"stage": node.name, "commit": "", "seconds": "not finished", "versions": ""})
            continue
        origin = record["provenance"]
        versions = ", ".join(f"{package} {version}" for package, version in origin["packages"].items())
        found.append({"stage": node.name, "commit": origin["commit"], "seconds": json.dumps(origin["seconds"]), "versions": versions})
    return found
