"""Two sweeps side by side: the same settings, or one setting against many, by what RL gained."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.compare.arms import Arm, Difference, arms, paired_difference, shown_ks
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import contrasts
from pipeline.errors import PriorlabError


def compare_across(names: tuple[str, str], first: list[Evaluation], second: list[Evaluation]) -> list[Difference]:
    """Differences of gains, second minus first, per pair of settings and shown k.

    Pairs are settings of the same name; where there are none and one sweep has a single setting, that one against each of the other.
    Gains are paired per problem and seed. Raises `PriorlabError` if there is no pair, or none with problems and seeds in common.
    """
    ours, theirs = (_finished(name, evaluations) for name, evaluations in zip(names, (first, second), strict=True))
    pairs = _pairs(ours, theirs)
    if not pairs:
        raise PriorlabError(
            f"sweeps {names[0]!r} and {names[1]!r} share no setting: {', '.join(arm.name for arm in ours)} against "
            f"{', '.join(arm.name for arm in theirs)}"
        )
    ks = [k for k in shown_ks(first) if k in shown_ks(second)]
    found = [
        (one.name, other.name, k, values)
        for one, other in pairs
        for k in ks
        if (values := paired_difference(other, one, k)) is not None
    ]
    if not found:
        raise PriorlabError(
            f"sweeps {names[0]!r} and {names[1]!r} cannot be compared: their settings were measured on other problems, or with "
            "other seeds"
        )
    return [
        Difference("sweep", f"{names[1]}:{other}", f"{names[0]}:{one}", k, len(found), gain)
        for (one, other, k, _), gain in zip(found, contrasts([values for *_, values in found]), strict=True)
    ]


def _finished(name: str, evaluations: list[Evaluation]) -> list[Arm]:
    found = [arm for arm in arms(evaluations) if arm.complete]
    if not found:
        raise PriorlabError(
            f"sweep {name!r} has no setting that was measured before and after RL; `priorlab status {name}` shows how far it is"
        )
    return found


def _pairs(ours: Sequence[Arm], theirs: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    by_name = {arm.name: arm for arm in theirs}
    same = [(arm, by_name[arm.name]) for arm in ours if arm.name in by_name]
    if same or 1 not in (len(ours), len(theirs)):
        return same
    return [(one, other) for one in ours for other in theirs]
