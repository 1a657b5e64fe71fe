"""What RL does to problems: which it solves that the base did not, which it no longer solves, and how reliably.

Cover@tau is the share of problems of whose samples at least the share tau is correct (arXiv 2510.08325).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.compare.evaluations import Evaluation, over_sets
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
    rate, greedy = Quantity("avg@n", n), Quantity("greedy", 1)
    if setting.values(rate) is None:
        return None
    whole = {metric: Quantity(metric, n) for metric in WHOLE_RESPONSES}
    return {
        "setting": setting.name,
        "n": n,
        **_changed(setting, rate),
        "by_luck": _mean(setting, [over_sets(lambda one: _by_luck(rate.of(one), n), base) for base in setting.before]),
        "greedy": None if setting.values(greedy) is None else _changed(setting, greedy),
        "cover": [{"tau": tau} | _as_dicts(cover(setting, tau)) for tau in TAUS],
        **{name: None if setting.values(of) is None else _as_dicts(_sides(setting, of.of)) for name, of in whole.items()},
    }


def cover(setting: MeasuredSetting, tau: float) -> list[Interval]:
    """Cover@tau before RL and, if the setting is finished, after it."""
    return _sides(setting, lambda one: (one.values("avg@n", one.n) >= tau - _ROUNDING).astype(float))


def drawn_taus(setting: MeasuredSetting) -> list[float]:
    """Where Cover@tau is drawn: at one correct sample of n, and from there on in tenths."""
    least = 1 / setting.before[0].n
    return [least, *(tenth / 10 for tenth in range(1, 11) if tenth / 10 > least)]


def _sides(setting: MeasuredSetting, of_one: Callable[[Evaluation], Floats]) -> list[Interval]:
    """The mean of `of_one`'s values for the problems of each set, before RL and, if the setting is finished, after it."""
    sizes = setting.before[0].sizes
    return [
        mean_interval(np.stack([over_sets(of_one, one) for one in side]), sizes) for side in (setting.before, setting.after) if side
    ]


def _mean(setting: MeasuredSetting, by_seed: Sequence[Floats]) -> dict[str, float | None]:
    return mean_interval(np.stack(by_seed), setting.before[0].sizes).as_dict()


def _as_dicts(sides: Sequence[Interval]) -> dict[str, Any]:
    return {name: one.as_dict() for name, one in zip(("before", "after"), sides, strict=True)}


def _changed(setting: MeasuredSetting, quantity: Quantity) -> dict[str, Any]:
    """The shares of problems solved before RL and not after (`lost`), and after and not before (`gained`)."""

    def only_first(first: Evaluation, second: Evaluation) -> Floats:
        return ((quantity.of(first) > 0) & ~(quantity.of(second) > 0)).astype(float)

    pairs = list(zip(setting.before, setting.after, strict=True))
    return {
        "lost": _mean(setting, [over_sets(only_first, before, after) for before, after in pairs]),
        "gained": _mean(setting, [over_sets(only_first, after, before) for before, after in pairs]),
    }


def _by_luck(rates: Floats, n: int) -> Floats:
    """The chance that a random half of the n samples has a correct one, and the other half none."""
    correct = np.round(rates * n)
    return none_of(correct, n, n - n // 2) - (correct == 0)
