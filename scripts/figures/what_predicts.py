"""Which measurements before RL predict where it ends? Over all sweeps of docs/results on Countdown, from their results.csv.

    .venv/bin/python scripts/figures/what_predicts.py           # prints the table of docs/results/README.md
    .venv/bin/python scripts/figures/what_predicts.py levels    # of this sweep alone

Two questions, with the same measurements of base models and pass@1 after RL. Between settings: do bases that measure higher end higher?
Each setting counts once, with the mean over its seeds, and is compared with those of its sweep that had the same RL. Between seeds: of
runs that differ by their seed alone, do those that measure higher end higher? Both are rank correlations within each group, averaged
over groups by their degrees of freedom. p is how often any measurement correlates as strongly when levels are permuted within groups
(Westfall and Young, 1993): by one permutation of all settings, or of all seeds, since groups share base models and are no evidence
independent of one another.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"
MEASUREMENTS = {
    "entropy": ("entropy", ""),
    "perplexity": ("perplexity", ""),
    "mass of the five most probable tokens": ("head_mass", "5"),
    "pass@1": ("pass@k", "1"),
    "pass@8": ("pass@k", "8"),
    "pass@16": ("pass@k", "16"),
    "greedy": ("greedy", "1"),
    "response length": ("length", None),
}
"""By what the table calls it, metric and k; None for any."""
SWEEPS = ("algorithms", "countdown", "exploration", "forms", "objectives")
_PERMUTATIONS = 20_000
_SEED = 0

Cell = tuple[str, str, str]
"""What is held fixed, the setting, and the seed."""
Group = tuple[list[str], Float[np.ndarray, " members"], Float[np.ndarray, "members measurements"]]
"""Names of settings or seeds, their levels after RL, and what was measured before it."""


def read(sweeps: tuple[str, ...], folder: Path = RESULTS) -> dict[Cell, tuple[float, list[float]]]:
    """Of each cell that was measured before and after RL: pass@1 after it, and the measurements before it, in their order."""
    found: dict[Cell, tuple[float, list[float]]] = {}
    for sweep in sweeps:
        cells: dict[Cell, dict[tuple[str, str, str], float]] = defaultdict(dict)
        with (folder / sweep / "results.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                prior, _, rest = row["cell"].removesuffix(f"-seed{row['seed']}").removeprefix(row["prior"]).partition("-")
                # In `forms` the rest is the objective's form, of which one makes other bases; elsewhere it is how RL was done.
                form = rest.removeprefix("form") if rest.startswith("form") else ""
                setting = row["prior"] + f"[{form}]" * (form == "power")
                fixed = sweep if form else f"{sweep} {rest}"
                kind = "after" if row["after"] == "rl" else "before"
                if row["value"] and not prior:
                    cells[fixed, setting, row["seed"]].setdefault((kind, row["metric"], row["k"]), float(row["value"]))
        for cell, values in cells.items():
            before = [
                next(
                    (value for (kind, name, at), value in values.items() if (kind, name) == ("before", metric) and k in (None, at)),
                    None,
                )
                for metric, k in MEASUREMENTS.values()
            ]
            level = values.get(("after", "pass@k", "1"))
            if level is not None and None not in before:
                found[cell] = level, before  # type: ignore[assignment]  # none is None
    return found


def between_settings(cells: dict[Cell, tuple[float, list[float]]]) -> list[Group]:
    """A group per sweep and way of RL: of each setting, the means over its seeds."""
    rows: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for (fixed, setting, _), (level, before) in cells.items():
        rows[fixed][setting].append([level, *before])
    return [_group({name: list(np.mean(seeds, axis=0)) for name, seeds in of.items()}) for of in rows.values() if len(of) > 2]


def between_seeds(cells: dict[Cell, tuple[float, list[float]]]) -> list[Group]:
    """A group per setting: its seeds."""
    rows: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
    for (fixed, setting, seed), (level, before) in cells.items():
        rows[fixed, setting][seed] = [level, *before]
    return [_group(of) for of in rows.values() if len(of) > 2]


def _group(rows: dict[str, list[float]]) -> Group:
    table = np.array(list(rows.values()))
    return list(rows), table[:, 0], table[:, 1:]


def correlations(groups: list[Group]) -> tuple[Float[np.ndarray, " measurements"], Float[np.ndarray, " measurements"]]:
    """Of each measurement, the mean rank correlation with the level, and its p, corrected for the number of measurements."""
    rng = np.random.default_rng(_SEED)
    names = sorted({name for members, _, _ in groups for name in members})
    keys = rng.random((_PERMUTATIONS, len(names)))  # their order within a group is the permutation of its members
    freedom = sum(len(members) - 1 for members, _, _ in groups)
    found, permuted = np.zeros(len(MEASUREMENTS)), np.zeros((_PERMUTATIONS, len(MEASUREMENTS)))
    for unsorted, levels, measured in groups:
        order = np.argsort(unsorted)  # the same for groups with the same members
        members = [unsorted[at] for at in order]
        ranks, columns = _standard(rankdata(levels[order])), _standard(rankdata(measured[order], axis=0))
        share = (len(members) - 1) / freedom
        found += share * (ranks @ columns)
        permuted += share * (ranks[keys[:, [names.index(name) for name in members]].argsort(axis=1)] @ columns)
    strongest = np.abs(permuted).max(axis=1)
    p = np.array([(1 + (strongest >= abs(one) - 1e-9).sum()) / (1 + _PERMUTATIONS) for one in found])
    return found, p


def _standard(ranks: np.ndarray) -> np.ndarray:
    """Centred and of length 1; zeros where all are the same."""
    centred = ranks - ranks.mean(axis=0)
    length = np.linalg.norm(centred, axis=0)
    standard: np.ndarray = centred / np.where(length > 0, length, 1)
    return standard


def table(cells: dict[Cell, tuple[float, list[float]]]) -> str:
    """In Markdown."""
    groups = {"settings": between_settings(cells), "seeds": between_seeds(cells)}
    counts = {name: f"{len({one for group in found for one in group[0]})} in {len(found)} groups" for name, found in groups.items()}
    lines = [
        f"| before RL | between settings ({counts['settings']}) | p | between seeds ({counts['seeds']}) | p |",
        "|---|---|---|---|---|",
    ]
    (between, p), (within, q) = (correlations(found) for found in groups.values())
    for at, name in enumerate(MEASUREMENTS):
        lines.append(f"| {name} | {between[at]:+.2f} | {p[at]:.3f} | {within[at]:+.2f} | {q[at]:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(read(tuple(sys.argv[1:]) or SWEEPS)))
