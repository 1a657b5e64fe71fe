"""What RL does to problems: which it solves that the base did not, which it no longer solves, and how reliably.

Cover@tau is the share of problems of whose samples at least the share tau is correct (arXiv 2510.08325).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.compare.intervals import Floats, Interval, mean_interval
from pipeline.compare.measured import MeasuredSetting, Quantity, none_of

TAUS = (0.1, 0.5, 0.9)
WHOLE_RESPONSES = {"distinct_answers": "distinct answers", "response_entropy": "response entropy"}
"""Metrics of whole responses that newer evaluations have, and what tables call them."""
_ROUNDING = 1e-9


def changed_problems(setting: MeasuredSetting) -> dict[str, Any] | None:
    """As plain data, means over problems and seeds with their intervals; None until the setting is finished.

    `lost` are solved by a sample before RL and by none after, `gained` the reverse; in `greedy`, by the greedy response. `by_luck` is
    the share that n/2 samples of the base solve and n/2 others do not. `cover`: Cover@tau at `TAUS`, before and after.
    Metrics of `WHOLE_RESPONSES` are None where they were not measured.
    """
    n = setting.before[0].n
    rates = _sides(setting, Quantity("avg@n", n))
    if rates is None:
        return None
    greedy = _sides(setting, Quantity("greedy", 1))
    return {
        "arm": setting.name,
        "n": n,
        **_changed(*rates),
        "by_luck": mean_interval(_by_luck(rates[0], n)).as_dict(),
        "greedy": None if greedy is None else _changed(*greedy),
        "cover": [{"tau": tau} | _as_dicts(cover(setting, tau)) for tau in TAUS],
        **{metric: None if (sides := _sides(setting, Quantity(metric, n))) is None else _means(sides) for metric in WHOLE_RESPONSES},
    }


def cover(setting: MeasuredSetting, tau: float) -> list[Interval]:
    """Cover@tau before RL and, if the setting is finished, after it."""
    rates = ([one.values("avg@n", one.n) for one in side] for side in (setting.before, setting.after) if side)
    return [mean_interval((np.stack(side) >= tau - _ROUNDING).astype(float)) for side in rates]


def drawn_taus(setting: MeasuredSetting) -> list[float]:
    """Where Cover@tau is drawn: at one correct sample of n, and from there on in tenths."""
    least = 1 / setting.before[0].n
    return [least, *(tenth / 10 for tenth in range(1, 11) if tenth / 10 > least)]


def _sides(setting: MeasuredSetting, quantity: Quantity) -> tuple[Floats, Floats] | None:
    """Before and after RL, shaped (seeds, problems)."""
    after = setting.values(quantity)
    return None if after is None else (setting.base_values(quantity), after)


def _means(sides: Sequence[Floats]) -> dict[str, Any]:
    return _as_dicts([mean_interval(one) for one in sides])


def _as_dicts(sides: Sequence[Interval]) -> dict[str, Any]:
    return {name: one.as_dict() for name, one in zip(("before", "after"), sides, strict=True)}


def _changed(before: Floats, after: Floats) -> dict[str, Any]:
    had, has = before > 0, after > 0
    return {name: mean_interval(which.astype(float)).as_dict() for name, which in (("lost", had & ~has), ("gained", has & ~had))}


def _by_luck(rates: Floats, n: int) -> Floats:
    """The chance that a random half of the n samples has a correct one, and the other half none."""
    correct = np.round(rates * n)
    return none_of(correct, n, n - n // 2) - (correct == 0)
