"""What the shaped objective pays. The loss takes anything with these five numbers: a `Shape`, or a prior of a priorlab config.

Written without pydantic: the loss needs torch and numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Form = Literal["product", "power"]


class Setting(Protocol):
    """The setting at one moment of training; `objective` has the formulas, arXiv 2512.22955 (Eqs. 11-13) the reasons."""

    @property
    def beta(self) -> float: ...  # exponent of the positive reward; < 0 sharpens, > 0 flattens

    @property
    def lambda_head(self) -> float: ...  # reward of wrong tokens inside the head

    @property
    def lambda_tail(self) -> float: ...  # reward of wrong tokens outside it

    @property
    def k(self) -> int: ...  # size of the head, in tokens

    @property
    def form(self) -> Form: ...  # of the positive reward


@dataclass(frozen=True)
class Shape:
    """A `Setting` for code without priorlab's configs; `Shape()` is cross-entropy.

    Raises:
        ValueError: beta is below -1, a number is not finite, a lambda has no head to refer to, or the form is unknown.
    """

    beta: float = 0.0
    lambda_head: float = 0.0
    lambda_tail: float = 0.0
    k: int = 0
    form: Form = "product"

    def __post_init__(self) -> None:
        for name in ("beta", "lambda_head", "lambda_tail"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a finite number")
        if self.beta < -1:
            raise ValueError(f"beta is {self.beta:g}; expected at least -1")
        least = 1 if rank_aware(self) else 0
        if self.k < least:
            raise ValueError(f"k is {self.k}, the size of the head in tokens; these lambdas need at least {least}")
        if self.form not in get_args(Form):
            raise ValueError(f"form is {self.form!r}; expected one of {', '.join(map(repr, get_args(Form)))}")


def rank_aware(setting: Setting) -> bool:
    """Whether a token's reward depends on its rank, so that the head must be looked up."""
    return setting.lambda_head != 0 or setting.lambda_tail != 0
