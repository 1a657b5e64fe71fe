"""An example of your own figure: where RL ends in pass@1 against the entropy that the prior left behind.

    .venv/bin/python scripts/figures/own_analysis.py quickstart figure.svg

A dot is a cell. A bar is a setting: the level of its reference, cross-entropy (the line), plus the difference, with the interval
that holds jointly for all settings. A bar that misses the line is a difference that is shown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.analysis import load_sweep_results
from pipeline.errors import PriorlabError


def draw(name: str, file: Path) -> pandas.DataFrame:
    """Write the figure; returns the cells' points. Raises `PriorlabError` if there is no such sweep, or nothing has finished."""
    sweep = load_sweep_results(name)
    values, text = sweep.problems, sweep.heldout
    pass_1 = values[(values["metric"] == "pass@k") & (values["k"] == 1) & (values["after"] == "rl")]
    entropy = text[(text["metric"] == "entropy") & text["before_rl"]]
    frames = {"entropy": entropy, "pass@1": pass_1}
    means = {label: frame.groupby(["setting", "cell"], sort=False)["value"].mean() for label, frame in frames.items()}
    points = pandas.DataFrame(means).dropna()
    if points.empty:
        raise PriorlabError(f"sweep {name!r} has no cell measured after RL yet; `priorlab status {name}` shows its progress")
    levels = sweep.levels[(sweep.levels["axis"] == "prior") & (sweep.levels["metric"] == "pass@k") & (sweep.levels["k"] == 1)]
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for setting, cells in points.groupby(level="setting", sort=False):
        (dots,) = axis.plot(cells["entropy"], cells["pass@1"], "o", ms=4, alpha=0.6, label=setting)
        for one in levels[levels["setting"] == setting].itertuples():
            reference = points.loc[one.reference, "pass@1"].mean()
            axis.axhline(reference, color="grey", lw=0.8, zorder=0)
            axis.vlines(cells["entropy"].mean(), reference + one.low, reference + one.high, color=dots.get_color(), lw=2)
    axis.set_xlabel("entropy before RL (nats)")
    axis.set_ylabel("pass@1 after RL")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(file)
    return points


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="a sweep that was started")
    parser.add_argument("file", type=Path, help="where the figure goes: .svg, .pdf or .png")
    given = parser.parse_args()
    try:
        draw(given.sweep, given.file)
    except (PriorlabError, OSError, ValueError) as error:  # no such sweep; a file that cannot be written; an unknown format
        sys.exit(f"error: {error}")
