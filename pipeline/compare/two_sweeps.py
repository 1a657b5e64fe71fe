"""Two sweeps side by side: the same settings, or one setting against many, by where RL ends and what it gained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.compare.contrasts import Difference, Kind, compare_pairs
from pipeline.compare.findings import Findings
from pipeline.compare.measured import MeasuredSetting
from pipeline.errors import PriorlabError


def compare_across(kind: Kind, names: tuple[str, str], first: Findings, second: Findings) -> list[Difference]:
    """Differences, second minus first, per pair of settings and quantity that both show.

    Settings are paired if they agree on the axes that both sweeps have. If none do, and one sweep has a single setting, it is paired
    with every setting of the other. Values are paired per problem and seed. Raises `PriorlabError` without a pair that has
    problems and seeds in common.
    """
    ours, theirs = (_finished(name, found) for name, found in zip(names, (first, second), strict=True))
    pairs = _pairs(ours, theirs)
    if not pairs:
        raise PriorlabError(
            f"sweeps {names[0]!r} and {names[1]!r} share no setting: {', '.join(setting.name for setting in ours)} against "
            f"{', '.join(setting.name for setting in theirs)}"
        )
    found = compare_pairs(
        kind, "sweep", [(other, one) for one, other in pairs], [shown for shown in first.shown if shown in second.shown]
    )
    if not found:
        raise PriorlabError(
            f"sweeps {names[0]!r} and {names[1]!r} cannot be compared: their settings were measured on different problems, or with "
            "different seeds"
        )
    return [replace(one, setting=f"{names[1]}:{one.setting}", reference=f"{names[0]}:{one.reference}") for one in found]


def _finished(name: str, found: Findings) -> list[MeasuredSetting]:
    finished = [setting for setting in found.settings if setting.finished]
    if not finished:
        raise PriorlabError(
            f"sweep {name!r} has no setting measured both before and after RL; `priorlab status {name}` shows its progress"
        )
    return finished


def _pairs(ours: Sequence[MeasuredSetting], theirs: Sequence[MeasuredSetting]) -> list[tuple[MeasuredSetting, MeasuredSetting]]:
    common = [axis for axis in ours[0].coordinates if axis in theirs[0].coordinates]
    every = [(one, other) for one in ours for other in theirs]
    same = [(one, other) for one, other in every if common and all(one.coordinates[axis] == other.coordinates[axis] for axis in common)]
    return same if same or 1 not in (len(ours), len(theirs)) else every
