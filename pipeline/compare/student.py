"""Student's t distribution for any number of degrees of freedom, whole or not.

With T = sqrt(f) / tan(u), the angle u of the positive half has a density proportional to sin(u)^(f-1) between 0 and pi/2 (Student,
1908): no gamma functions, and far tails are small angles. It is integrated on a grid that is fine there; quantiles are right to .02%.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_ANGLES = np.concatenate([np.geomspace(1e-9, 0.1, 4000, endpoint=False), np.linspace(0.1, np.pi / 2, 4000)])
_NORMAL_FROM = 10_000
"""Degrees of freedom from which the distribution is taken as normal: quantiles differ by less than .1%."""


@lru_cache(maxsize=1024)
def t_quantile(tail: float, freedom: float) -> float:
    """What T exceeds with probability `tail`, which is at most a half."""
    if freedom > _NORMAL_FROM:
        return NormalDist().inv_cdf(1 - tail)
    return math.sqrt(freedom) / math.tan(float(np.interp(2 * tail, _below(freedom), _ANGLES)))


def t_below(value: float, freedom: float) -> float:
    """The probability that T is below `value`."""
    if freedom > _NORMAL_FROM:
        return NormalDist().cdf(value)
    tail = float(np.interp(math.atan2(math.sqrt(freedom), abs(value)), _ANGLES, _below(freedom))) / 2
    return 1 - tail if value > 0 else tail


@lru_cache(maxsize=64)
def _below(freedom: float) -> NDArray[np.float64]:
    """For each of the angles, the probability of a smaller one."""
    density = np.sin(_ANGLES) ** (freedom - 1)
    summed = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) * np.diff(_ANGLES))])
    below: NDArray[np.float64] = summed / summed[-1]
    return below
