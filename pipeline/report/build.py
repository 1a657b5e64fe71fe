"""Write the results of a sweep: results.csv, samples.parquet, report.html, report.md and its figures."""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path
from typing import Any

import jinja2

from pipeline.compare.findings import Findings
from pipeline.compare.results import result_rows, results_text, write_samples
from pipeline.experiment.graph import Graph
from pipeline.report import details, tables
from pipeline.report.figures import Figure, figures
from pipeline.report.svg import standalone
from pipeline.store.files import write_text_atomically
from pipeline.store.folders import Home

_LARGEST_EMBEDDED = 1_500_000
"""Bytes of results.csv up to which the report embeds it; it links to a larger one beside it."""
_NOTE = (
    "Entropy (nats) and perplexity are those of the model that RL starts from, on held-out text. Gain = after RL minus before, paired "
    "per problem; the intervals of all gains hold jointly. They cover the choice of problems, and of seeds where there are several."
)
_ABOUT = {
    "levels": ("Where RL ends", "After RL: setting minus the one it is compared with, paired per problem and seed."),
    "differences": ("What RL gains", "Gain of the setting minus gain of the one it is compared with."),
    "adjusted": (
        "Where RL ends, given the base",
        "The difference after RL minus what the difference before RL predicts, by the slope of after on before over seeds.",
    ),
    "best_temperature": (
        "Where RL ends, each at its best temperature",
        "After RL, at the temperature that is best on the other half of the problems: what is left when each samples at its best.",
    ),
}
"""Title and note of each table of contrasts in a summary, in the order of the report."""
_DECLARED = (
    "After RL: setting minus the one that the sweep declares to compare it with, paired per problem and seed. All intervals hold "
    "jointly with 95%; one that includes 0 shows no difference."
)
_PROBLEMS = (
    "What RL does to problems",
    "Lost: the share of problems solved by at least one of the n samples before RL and by none after; gained: the reverse; with 95% "
    "intervals. By luck: solved by n/2 samples of the base and by none of n/2 others, so RL has no part in it. Greedy lost and gained: "
    "by the greedy response. Cover@tau: the share of problems of whose samples at least the share tau is correct, before and after RL.",
)
"""Title and note of the table of problems gained and lost."""
_WHOLE_RESPONSES = {
    "distinct_answers": "Distinct answers: the effective number among a problem's n samples, correct or not.",
    "response_entropy": "Response entropy: of whole responses, in nats.",
}
"""More notes, where these were measured."""
_STARTS = (
    "Start: the share of pre-training after which RL starts, with the tokens seen by then. Entropy (nats) is that checkpoint's, on "
    "held-out text. The intervals of all gains, those of the first table included, hold jointly."
)
_MATCHED = (
    "After RL: setting minus reference, where the reference is interpolated linearly between two of its starts to the pass@1, or to "
    "the entropy, of the setting's base. Where no two of its starts lie around it, the pair is left out. Along one axis, all "
    "intervals matched alike hold jointly with 95%; one that includes 0 shows no difference."
)
_SETS = (
    "All other tables and figures are of the mean over these evaluation sets, each of which counts alike whatever its size. The "
    "intervals of all gains on all sets hold jointly, apart from those of the mean."
)
_JOINTLY_ON_SETS = "Along one axis, all intervals on all sets hold jointly with 95%; one that includes 0 shows no difference."
_JOINTLY = "Along one axis, all intervals hold jointly with 95%; one that includes 0 shows no difference."


def write_comparison(name: str, description: str, graph: Graph, found: Findings, summary: dict[str, Any], home: Home) -> None:
    """Write all files of the comparison; `summary` is `pipeline.compare.summary.summary` of `found`."""
    folder = home.sweep(name)
    write_text_atomically(folder / "results.csv", results_text(result_rows(name, found.evaluations)))
    write_samples(folder / "samples.parquet", graph, home)
    drawn = figures(found, home)
    _write_figures(folder / "figures", drawn)
    write_text_atomically(folder / "report.md", _markdown(name, description, summary, drawn))
    write_text_atomically(folder / "report.html", _html(name, description, graph, found, summary, home, drawn))


def _write_figures(folder: Path, drawn: list[Figure]) -> None:
    """One file each, for papers and slides; figures no longer drawn are deleted."""
    folder.mkdir(exist_ok=True)
    for figure in drawn:
        write_text_atomically(folder / figure.file_name, standalone(figure.svg))
    for file in folder.glob("*.svg"):
        if file.name not in {figure.file_name for figure in drawn}:
            file.unlink(missing_ok=True)


def _markdown(name: str, description: str, summary: dict[str, Any], drawn: list[Figure]) -> str:
    said = "\n".join(f"- {html.escape(sentence, quote=False)}" for sentence in summary["verdict"])
    parts = [f"# Sweep {name}", html.escape(description, quote=False), said, tables.markdown(*tables.comparison(summary["rows"]))]
    parts += [tables.mean_over(summary["sets"]["rows"])] if summary["sets"] else []
    parts += [part for _, title, note, table in _tables(summary) for part in (f"## {title}", note, tables.markdown(*table))]
    shown = [f"![{figure.title}](figures/{figure.file_name})\n\n{figure.caption}" for figure in drawn]
    return "\n\n".join([*parts, _NOTE, *shown]) + "\n"


def _html(name: str, description: str, graph: Graph, found: Findings, summary: dict[str, Any], home: Home, drawn: list[Figure]) -> str:
    compared, (headings, rows) = found.settings, tables.comparison(summary["rows"])
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, loader=loader
    )
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("template.html.j2").render(
        name=name,
        script=script,
        script_hash=f"sha256-{digest}",  # the browser runs this one script and no other
        description=description,
        note=_NOTE,
        summary=summary,
        headings=headings,
        rows=rows,
        tables=_tables(summary),
        csv=_embedded(home.sweep(name) / "results.csv"),
        figures=drawn,
        settings=details.settings(compared),
        priors=details.prior_rows(compared),
        examples=details.examples(compared, home),
        sources=details.sources(graph, home),
    )


def _tables(summary: dict[str, Any]) -> list[tuple[str, str, str, tables.Rows]]:
    """Anchor, title, note, and headings with rows, of the tables below the comparison."""
    declared = summary["declared"]
    found = [("declared", "Pass@1 after RL, as declared", _DECLARED, tables.contrasts(declared))] if declared else []
    found += [
        (kind, f"{title}, compared", f"{note} {_JOINTLY}", tables.contrasts(summary[kind]))
        for kind, (title, note) in _ABOUT.items()
        if summary[kind]
    ]
    if summary["problems"]:
        title, note = _problems(summary)
        found.append(("problems", title, note, tables.changed_problems(summary["problems"])))
    if summary["sets"]:
        rows = summary["sets"]["rows"]
        found.append(("sets", "On each evaluation set", _SETS, tables.on_sets(rows, tables.pass_keys(rows))))
        for kind, (title, note) in _ABOUT.items():
            if summary["sets"].get(kind):
                compared = tables.contrasts(summary["sets"][kind])
                found.append((f"sets-{kind}", f"{title}, on each evaluation set, compared", f"{note} {_JOINTLY_ON_SETS}", compared))
    if summary["starts"]:
        rows, equal = summary["starts"]["rows"], summary["starts"]["matched"]
        found.append(("starts", "By where RL starts", _STARTS, tables.starts(rows, tables.pass_keys(rows))))
        if equal:
            found.append(("matched", "Where RL ends, from matched bases, compared", _MATCHED, tables.matched(equal)))
    if summary["temperatures"]:
        note = "Entropy of held-out text and pass@k before and after RL, by sampling temperature."
        found.append(("temperatures", "By sampling temperature", note, tables.temperatures(summary["temperatures"])))
    if summary["best_rates"]:
        note = "Each setting's best RL learning rate on validation, and differences after RL between settings at these rates."
        found.append(("rates", "Each at its best learning rate", note, tables.best_rates(summary["best_rates"])))
        if summary["best_rates"]["contrasts"]:
            compared = tables.contrasts(summary["best_rates"]["contrasts"])
            found.append(("rates-compared", "Where RL ends, each at its best learning rate, compared", _JOINTLY, compared))
    if summary["equal_budgets"]:
        found.append(("budgets", *_budgets(summary["equal_budgets"]), tables.budgets(summary["equal_budgets"])))
    return found


def _problems(summary: dict[str, Any]) -> tuple[str, str]:
    title, note = _PROBLEMS
    more = [said for metric, said in _WHOLE_RESPONSES.items() if any(one[metric] is not None for one in summary["problems"])]
    return title, " ".join([note, *more])


def _budgets(found: dict[str, Any]) -> tuple[str, str]:
    """Title and note of the table of gains at equal budgets."""
    title = "At equal steps and at equal rollouts"
    reached = f"up to step {found['steps']}, and up to {found['rollouts']:,} rollouts, which all have reached"
    if found["kl"] is not None:
        title = "At equal steps, rollouts and distance from the base"
        reached += f"; and where the KL divergence from the base first reaches {found['kl']:.2g} nats per response, interpolated"
    return title, f"Gain in pass@1 on the validation problems during RL: {reached}."


def _embedded(file: Path) -> str:
    """A data URL of the file, or its name if it is large."""
    if file.stat().st_size > _LARGEST_EMBEDDED:
        return file.name
    return f"data:text/csv;base64,{base64.b64encode(file.read_bytes()).decode()}"
