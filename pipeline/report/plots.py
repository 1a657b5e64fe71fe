"""The report's figures, as SVG text. One colour per arm throughout (Okabe-Ito, safe for the colour-blind)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.compare import Arm, Evaluation, stage_rows
from pipeline.store import Home

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a prior may be called anything
    "svg.hashsalt": "priorlab",
}
# RL metrics are averaged over this share of the run: single steps of a few prompts are noise.
_SMOOTHING = 0.1
# Share of pre-training that is not drawn.
_SKIPPED = 0.1


def pass_at_k_curves(arms: Sequence[Arm]) -> str:
    """pass@k before (dashed) and after RL (solid) against k, one panel per arm, with 95% bands."""
    with plt.rc_context(_STYLE):
        columns = min(3, len(arms))
        rows = -(-len(arms) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.3 * columns, 2.7 * rows), sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        for index, arm in enumerate(arms):
            axis, colour = axes.flat[index], _COLOURS[index % len(_COLOURS)]
            ks = sorted(arm.before[0].metrics["pass@k"])
            before = [arm.before_at("pass@k", k) for k in ks]
            axis.plot(ks, [i.value for i in before], "--", color="#666666", label="before RL")
            axis.fill_between(ks, [i.low for i in before], [i.high for i in before], color="#666666", alpha=0.15, lw=0)
            after = [interval for k in ks if (interval := arm.after_at("pass@k", k)) is not None]
            if after:
                axis.plot(ks, [i.value for i in after], color=colour, label="after RL")
                axis.fill_between(ks, [i.low for i in after], [i.high for i in after], color=colour, alpha=0.2, lw=0)
            axis.set_xscale("log", base=2)
            axis.set_xticks(ks, [str(k) for k in ks])
            axis.set_ylim(0, 1.02)
            axis.set_title(arm.name, color=colour, fontweight="bold")
            axis.legend(loc="lower right")
        for axis in axes.flat[len(arms) :]:
            axis.set_visible(False)
        for axis in axes.flat[max(0, len(arms) - columns) : len(arms)]:  # the lowest drawn panel of each column
            axis.set_xlabel("k (samples)")
            axis.tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel("pass@k")
        return _svg(figure)


def gains(arms: Sequence[Arm], k: int) -> str:
    """Forest plot of the pass@k gain with 95% intervals."""
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(6.6, 0.5 + 0.34 * len(arms)), layout="constrained")
        for index, arm in enumerate(arms):
            gain = arm.gain_at("pass@k", k)
            if gain is None:
                continue
            colour = _COLOURS[index % len(_COLOURS)]
            axis.plot([gain.low, gain.high], [index, index], color=colour)
            axis.plot(gain.value, index, "o", color=colour)
        axis.axvline(0, color="#333333", lw=1)
        axis.set_yticks(range(len(arms)), [arm.name for arm in arms])
        axis.invert_yaxis()
        axis.set_xlabel(f"gain in pass@{k} by RL, 95% interval")
        axis.grid(axis="y", visible=False)
        return _svg(figure)


def training_curves(
    arms: Sequence[Arm], home: Home, kind: str, panels: Sequence[tuple[str, str]], *, x: str, x_label: str, smooth: bool
) -> str:
    """One panel per (metric, title) of a stage's metrics.jsonl, one line per cell in its arm's colour."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(3.3 * len(panels), 2.7), squeeze=False, layout="constrained")
        for index, arm in enumerate(arms):
            colour = _COLOURS[index % len(_COLOURS)]
            for evaluation in arm.before:
                rows = stage_rows(evaluation.plan, kind, home)
                for axis, (metric, _) in zip(axes[0], panels, strict=True):
                    first = evaluation is arm.before[0]
                    _line(axis, rows, x, metric, colour, arm.name if first else None, smooth)
        for axis, (_, title) in zip(axes[0], panels, strict=True):
            axis.set_title(title)
            axis.set_xlabel(x_label)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, max(1, len(labels))))
        return _svg(figure)


def milestone_curves(arms: Sequence[Arm], evaluations: Sequence[Evaluation], ks: Sequence[int]) -> str:
    """Entropy, perplexity and pass@k of checkpoints against tokens, up to the one that RL starts from; a line per cell."""
    panels: list[tuple[str, int | None]] = [("entropy", None), ("perplexity", None), *(("pass@k", k) for k in ks)]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(3.3 * len(panels), 2.7), squeeze=False, layout="constrained")
        for index, arm in enumerate(arms):
            for last in arm.before:
                path = [evaluation for evaluation in evaluations if evaluation.plan is last.plan and evaluation.after != "rl"]
                tokens, label = [evaluation.tokens for evaluation in path], arm.name if last is arm.before[0] else None
                for axis, (metric, k) in zip(axes[0], panels, strict=True):
                    means = [e.values("cross_entropy" if metric == "perplexity" else metric, k).mean() for e in path]
                    shown = np.exp(means) if metric == "perplexity" else means
                    axis.plot(tokens, shown, "o-", markersize=3, color=_COLOURS[index % len(_COLOURS)], label=label)
        for axis, (metric, k) in zip(axes[0], panels, strict=True):
            axis.set_title(metric if k is None else f"pass@{k}")
            axis.set_xlabel("tokens")
            axis.set_xscale("log")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, max(1, len(labels))))
        return _svg(figure)


def _line(axis: Axes, rows: list[dict[str, float]], x: str, metric: str, colour: str, label: str | None, smooth: bool) -> None:
    points = [(row[x], row[metric]) for row in rows if x in row and metric in row]
    if x == "tokens":  # the fall from ln(vocabulary) would flatten everything after it
        points = [point for point in points if point[0] >= _SKIPPED * points[-1][0]]
    if not points:
        return
    values = [value for _, value in points]
    if smooth:
        window = max(1, round(len(values) * _SMOOTHING))
        values = [sum(values[max(0, i - window + 1) : i + 1]) / (i + 1 - max(0, i - window + 1)) for i in range(len(values))]
    axis.plot([at for at, _ in points], values, color=colour, label=label, alpha=0.95)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "priorlab"})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # inline SVG has no XML prologue
