"""Figures: pass@k, maj@k and Cover@tau, gains, differences between settings, what correlates with the level, and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.compare.best import temperatures
from pipeline.compare.contrasts import Difference
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.format import p_value
from pipeline.compare.intervals import Interval, JointInterval
from pipeline.compare.learning import LearningCurve
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.predictors import MEASUREMENTS, Points, Predictor
from pipeline.compare.problems import TAUS, cover, drawn_taus
from pipeline.compare.starts import Curve, tokens
from pipeline.report.svg import QUIET, STYLE, colour, dash, to_svg


def _panels(
    count: int, columns: int, size: tuple[float, float], *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """`count` panels in rows of `columns`, each of this size; spare places in the last row stay empty."""
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), sharex=sharex, sharey=sharey, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels, each label once."""
    found = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(6, len(found)))


def curves_at_k(settings: Sequence[MeasuredSetting], metric: str) -> str:
    """pass@k or maj@k before (dashed) and after RL (solid) against k, one panel per setting that has it, with 95% bands."""
    having = [(index, one) for index, one in enumerate(settings) if all(e.metrics.get(metric) for e in [*one.before, *one.after])]
    if not having:
        return ""
    with plt.rc_context(STYLE):
        columns = min(3, len(having))
        figure, panels = _panels(len(having), columns, (3.3, 2.7), sharex=True, sharey=True)
        for (index, setting), axis in zip(having, panels, strict=True):
            ks = sorted(setting.before[0].metrics[metric])
            _before_and_after(axis, index, [(k, [setting.before_at(metric, k), setting.after_at(metric, k)]) for k in ks])
            if setting.chance:
                axis.axhline(setting.chance, color=QUIET, lw=0.8, ls=":", label="guessing once")
            axis.set_xscale("log", base=2)
            axis.set_xticks(ks, [str(k) for k in ks])
            _title(axis, setting, index)
            axis.legend(loc="lower right")
        _label(panels, columns, "k (samples)", metric)
        return to_svg(figure)


def cover_curves(settings: Sequence[MeasuredSetting]) -> str:
    """Cover@tau before (dashed) and after RL (solid) against tau, one panel per setting, with 95% bands."""
    with plt.rc_context(STYLE):
        columns = min(3, len(settings))
        figure, panels = _panels(len(settings), columns, (3.3, 2.7), sharex=True, sharey=True)
        for index, (setting, axis) in enumerate(zip(settings, panels, strict=True)):
            _before_and_after(axis, index, [(tau, cover(setting, tau)) for tau in drawn_taus(setting)])
            axis.set_xlim(0, 1)
            axis.set_xticks(TAUS)
            _title(axis, setting, index)
            axis.legend(loc="upper right")
        _label(panels, columns, "tau (share of samples)", "share of problems")
        return to_svg(figure)


def _before_and_after(axis: Axes, index: int, points: Sequence[tuple[float, Sequence[Interval | None]]]) -> None:
    """Curves with bands through `points`: each a place, and what was measured there before and, if at all, after RL."""
    looks = (("before RL", QUIET, "--", 0.15), ("after RL", colour(index), "-", 0.2))
    for side, (label, ink, line, alpha) in enumerate(looks):
        found = [(at, one) for at, sides in points if side < len(sides) and (one := sides[side]) is not None]
        if found:
            places, intervals = zip(*found, strict=True)
            axis.plot(places, [i.value for i in intervals], line, color=ink, label=label)
            axis.fill_between(places, [i.low for i in intervals], [i.high for i in intervals], color=ink, alpha=alpha, lw=0)


def _title(axis: Axes, setting: MeasuredSetting, index: int) -> None:
    axis.set_ylim(0, 1.02)
    axis.set_title(setting.name, color=colour(index), fontweight="bold")


def _label(panels: Sequence[Axes], columns: int, x: str, y: str) -> None:
    for axis in panels[-columns:]:  # the lowest of each column
        axis.set_xlabel(x)
        axis.tick_params(labelbottom=True)
    for axis in panels[::columns]:
        axis.set_ylabel(y)


def gains(
    drawn: Sequence[MeasuredSetting],
    settings: Sequence[MeasuredSetting],
    found: Mapping[tuple[str, Quantity], JointInterval],
    ks: Sequence[int],
) -> str:
    """Forest plot: one row per setting that is drawn, one panel per k; colours as in the figures of `settings`."""
    colours = {setting.name: colour(index) for index, setting in enumerate(settings)}
    rows = [(setting.name, [found.get((setting.name, Quantity("pass@k", k))) for k in ks], colours[setting.name]) for setting in drawn]
    return _forest(rows, [f"gain in pass@{k}" for k in ks])


def differences(found: Sequence[Difference], settings: Sequence[MeasuredSetting]) -> str:
    """Forest plot of settings minus their references, one panel per quantity; colours as in the figures of `settings`."""
    colours = {setting.name: colour(index) for index, setting in enumerate(settings)}
    quantities = list(dict.fromkeys(one.quantity for one in found))
    by_pair: dict[tuple[str, str], dict[Quantity, Interval]] = {}
    for one in found:
        by_pair.setdefault((one.setting, one.reference), {})[one.quantity] = one.interval
    rows = [(f"{one} - {other}", [found.get(at) for at in quantities], colours[one]) for (one, other), found in by_pair.items()]
    return _forest(rows, [f"difference in {at.name}" for at in quantities])


def _forest(rows: Sequence[tuple[str, Sequence[Interval | None], str]], titles: Sequence[str]) -> str:
    with plt.rc_context(STYLE):
        longest = max(len(name) for name, *_ in rows)
        width = max(2.8 + 1.6 / len(titles), 2.2) if len(titles) < 4 else 2.2
        size = (width + max(0, longest - 20) * 0.07 / len(titles), 0.7 + 0.3 * len(rows))
        figure, panels = _panels(len(titles), len(titles), size, sharey=True)
        for column, (title, axis) in enumerate(zip(titles, panels, strict=True)):
            for at, (_, intervals, ink) in enumerate(rows):
                interval = intervals[column]
                if interval is not None:
                    axis.plot([interval.low, interval.high], [at, at], color=ink)
                    axis.plot(interval.value, at, "o", color=ink, ms=5)
            axis.axvline(0, color=QUIET, lw=1)
            axis.set_xlabel(title)
            axis.xaxis.set_major_locator(MaxNLocator(5 if len(titles) < 4 else 3))
            axis.grid(axis="y", visible=False)
        panels[0].set_yticks(range(len(rows)), [name for name, *_ in rows])
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        return to_svg(figure)


def level_against(points: Points, settings: Sequence[MeasuredSetting], foretold: Sequence[Predictor]) -> str:
    """One panel per measurement of the base model: one point per cell of `settings`, its pass@1 after RL against the measurement."""
    measurements = points.varying
    correlations = {one.measurement: one for one in foretold}
    with plt.rc_context(STYLE):
        columns = min(4, len(measurements))
        figure, panels = _panels(len(measurements), columns, (2.7, 2.4), sharey=True)
        for axis, name in zip(panels, measurements, strict=True):
            for index, setting in enumerate(settings):
                own = [at for at, of_setting in enumerate(points.settings) if of_setting == setting.name]
                axis.plot(
                    points.measured[name][own], points.level[own], "o", color=colour(index), ms=4.5, alpha=0.9, label=setting.name
                )
            axis.set_xlabel(MEASUREMENTS[name])
            axis.xaxis.set_major_locator(MaxNLocator(4))
            if name in correlations:
                one = correlations[name]
                axis.set_title(f"{one.correlation:+.2f}, {p_value(one.p)}", fontsize=8)
        for axis in panels[::columns]:
            axis.set_ylabel("pass@1 after RL")
        _legend(figure, panels)
        return to_svg(figure)


def temperature_curves(settings: Sequence[MeasuredSetting], ks: Sequence[int]) -> str:
    """pass@k before (dashed) and after RL (solid) against the sampling temperature, one panel per k, one line per setting."""
    with plt.rc_context(STYLE):
        figure, panels = _panels(len(ks), min(3, len(ks)), (3.3, 2.7))
        for k, axis in zip(ks, panels, strict=True):
            for index, setting in enumerate(settings):
                at = temperatures(setting)
                for side, style, label in ((setting.before, "--", None), (setting.after, "-", setting.name)):
                    means = [np.mean([e.temperatures[one].values("pass@k", k).mean() for e in side]) for one in at if side]
                    axis.plot(at[: len(means)], means, style, marker="o", markersize=3, color=colour(index), label=label)
            axis.set_title(f"pass@{k}")
            axis.set_xlabel("sampling temperature")
        _legend(figure, panels)
        return to_svg(figure)


_APART = 0.012
"""Share of the axis between intervals that belong at one place, so that none hides another."""


def start_curves(found: Sequence[Curve], gained: Mapping[tuple[str, Quantity], JointInterval], shown: Sequence[Quantity]) -> str:
    """Gains against tokens of pre-training with their intervals, and pass@1 after RL against the base's pass@1 and entropy."""
    with plt.rc_context(STYLE):
        figure, panels = _panels(len(shown) + 2, 2, (4.9, 2.7))
        apart = _APART * max(tokens(one) for curve in found for one in curve.starts)
        for index, curve in enumerate(found):
            shift = apart * (index - (len(found) - 1) / 2)
            look: dict[str, Any] = {"color": colour(index), "ls": dash(index), "label": curve.name, "marker": "o", "markersize": 3}
            for axis, quantity in zip(panels, shown, strict=False):
                known = [(tokens(one), gained[one.name, quantity]) for one in curve.starts if (one.name, quantity) in gained]
                at, values = [place + shift for place, _ in known], [interval.value for _, interval in known]
                errors = [
                    [interval.value - interval.low for _, interval in known],
                    [interval.high - interval.value for _, interval in known],
                ]
                axis.errorbar(at, values, errors, capsize=2, elinewidth=0.8, **look)
            ends = [one.after_at("pass@k", 1) for one in curve.starts]
            for axis, (metric, k) in zip(panels[len(shown) :], (("pass@k", 1), ("entropy", None)), strict=True):
                axis.plot(
                    [one.before_at(metric, k).value for one in curve.starts], [end.value for end in ends if end is not None], **look
                )
        for axis, quantity in zip(panels, shown, strict=False):
            axis.set_title(f"gain in {quantity.name}")
            axis.set_xlabel("tokens of pre-training")
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.axhline(0, color=QUIET, lw=0.8)
        for axis, label in zip(panels[len(shown) :], ("pass@1 of the base", "entropy of the base (nats)"), strict=True):
            axis.set_title("pass@1 after RL")
            axis.set_xlabel(label)
        _legend(figure, panels)
        return to_svg(figure)


Rows = Sequence[dict[str, float]]
"""metrics.jsonl of one run."""


def training_curves(series: Sequence[tuple[str, Sequence[Rows]]], shown: Sequence[tuple[str, str]], *, x: str, label: str) -> str:
    """One panel per (metric, title), one line per setting: the mean of its runs, with a band from the lowest run to the highest.

    `x` is the rows' key for the x axis, `label` its label.
    """
    with plt.rc_context(STYLE):
        columns = 3 if len(shown) % 4 else 4
        figure, panels = _panels(len(shown), columns, (9.9 / columns, 2.4))
        for index, (name, runs) in enumerate(series):
            for panel, (metric, _) in zip(panels, shown, strict=True):
                lines = [line for run in runs if (line := _line(run, x, metric)) is not None]
                if not lines:
                    continue
                at, values = _common(lines)
                panel.plot(at, values.mean(axis=0), color=colour(index), ls=dash(index), label=name)
                if len(values) > 1:
                    panel.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour(index), alpha=0.15, lw=0)
        for panel, (_, title) in zip(panels, shown, strict=True):
            panel.set_title(title)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            panel.xaxis.set_major_locator(MaxNLocator(5))
        for panel in panels[-columns:]:
            panel.set_xlabel(label)
        _legend(figure, panels)
        return to_svg(figure)


_TITLE = 26
"""Characters that a small panel has room for."""


def learning_curves(found: Sequence[LearningCurve], settings: Sequence[MeasuredSetting], *, label: str) -> str:
    """A panel per k, setting and reference: pass@k minus the reference's against what RL has spent, with bands.

    `label` is that of the x axis; colours are as in the figures of `settings`. Panels of one k share their scale.
    """
    indices = {setting.name: index for index, setting in enumerate(settings)}
    ordered = sorted(found, key=lambda curve: curve.k)
    most = {k: max(abs(end) for curve in found if curve.k == k for end in _ends(curve)) for k in {curve.k for curve in found}}
    with plt.rc_context(STYLE):
        columns = min(4, len({(curve.setting, curve.reference) for curve in found}))
        figure, panels = _panels(len(ordered), columns, (9.9 / columns if columns > 2 else 3.3, 2.2), sharex=True)
        for axis, curve in zip(panels, ordered, strict=True):
            ink = colour(indices[curve.setting])
            at, intervals = zip(*((place, one.interval) for place, one in curve.points), strict=True)
            axis.axhline(0, color=QUIET, lw=0.8)
            axis.plot(at, [one.value for one in intervals], color=ink)
            axis.fill_between(at, [one.low for one in intervals], [one.high for one in intervals], color=ink, alpha=0.2, lw=0)
            axis.set_ylim(-1.05 * most[curve.k], 1.05 * most[curve.k])
            name, than = curve.setting, f"- {curve.reference}, pass@{curve.k}"
            title = f"{name} {than}" if len(name) + len(than) < _TITLE else f"{name}\n{than}"
            axis.set_title(title, color=ink, fontweight="bold", fontsize=8)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        _label(panels, columns, label, "difference")
        return to_svg(figure)


def _ends(curve: LearningCurve) -> list[float]:
    """Where its intervals end, or its values where there are none."""
    intervals = [one.interval for _, one in curve.points]
    return [end for one in intervals for end in (one.low, one.high, one.value) if np.isfinite(end)]


def milestone_curves(settings: Sequence[MeasuredSetting], evaluations: Sequence[Evaluation], ks: Sequence[int]) -> str:
    """Entropy, perplexity and pass@k of checkpoints against tokens, up to the one that RL starts from; a line per cell."""
    shown: list[tuple[str, int | None]] = [("entropy", None), ("perplexity", None), *(("pass@k", k) for k in ks)]
    with plt.rc_context(STYLE):
        columns = 3 if len(shown) % 4 else 4
        figure, panels = _panels(len(shown), columns, (9.9 / columns, 2.4))
        for index, setting in enumerate(settings):
            for last in setting.before:
                path = [evaluation for evaluation in evaluations if evaluation.plan is last.plan and evaluation.after != "rl"]
                tokens, label = [evaluation.tokens for evaluation in path], setting.name if last is setting.before[0] else None
                for axis, (metric, k) in zip(panels, shown, strict=True):
                    means = [e.values("cross_entropy" if metric == "perplexity" else metric, k).mean() for e in path]
                    drawn = np.exp(means) if metric == "perplexity" else means
                    axis.plot(tokens, drawn, marker="o", markersize=3, color=colour(index), ls=dash(index), label=label)
        for axis, (metric, k) in zip(panels, shown, strict=True):
            axis.set_title(metric if k is None else f"pass@{k}")
            axis.set_xlabel("tokens")
            axis.set_xscale("log")
        _legend(figure, panels)
        return to_svg(figure)


_SMOOTHING = 0.1
"""Metrics of RL steps are averaged over this share of the run: single steps of a few prompts are noise."""
_SKIPPED = 0.1
"""Share of pre-training that is not drawn: the fall from ln(vocabulary) would flatten everything after it."""

Line = tuple[np.ndarray, np.ndarray]


def _line(run: Rows, x: str, metric: str) -> Line | None:
    points = np.array([(row[x], row[metric]) for row in run if x in row and metric in row and np.isfinite(row[metric])])
    if metric == "step_time":
        points = points[1:]  # the first step warms up
    if not len(points):
        return None
    at, values = points[:, 0], points[:, 1]
    if x == "tokens":
        kept = at >= _SKIPPED * at[-1]
        return at[kept], values[kept]
    if not metric.startswith("validation/"):
        window = max(1, round(len(values) * _SMOOTHING))
        averaged = np.minimum(np.arange(1, len(values) + 1), window)
        values = np.convolve(values, np.ones(window))[: len(values)] / averaged
    return at, values


def _common(lines: Sequence[Line]) -> Line:
    """The first run's places that all runs have reached, and all runs' values there, shaped (runs, places)."""
    last = min(at[-1] for at, _ in lines)
    places = lines[0][0][lines[0][0] <= last]
    return places, np.stack([np.interp(places, at, values) for at, values in lines])
