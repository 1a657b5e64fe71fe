"""The setting of the pre-training objective."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, execution


class Prior(Config):
    """Setting of the shaped next-token objective (arXiv 2512.22955, Eqs. 11-13); all zero is cross-entropy.

    `k` is the size of the head (the k most probable tokens). It matters only when a lambda is not zero, `form` only when beta is not.
    """

    name: str = execution("custom")
    beta: float = Field(0.0, ge=-1.0, description="positive reward scaling; < 0 precision, > 0 diversity")
    lambda_head: float = Field(0.0, description="reward of wrong tokens inside the head")
    lambda_tail: float = Field(0.0, description="reward of tokens outside the head")
    k: int = Field(0, ge=0, description="size of the head, in tokens")
    form: Literal["product", "power"] = "product"

    @property
    def rank_aware(self) -> bool:
        return self.lambda_head != 0 or self.lambda_tail != 0

    @model_validator(mode="after")
    def _head_needs_a_size(self) -> Prior:
        if self.rank_aware and self.k < 1:
            raise ValueError(
                f"k is {self.k}, but lambda_head={self.lambda_head:g} and lambda_tail={self.lambda_tail:g} "
                "reward tokens by rank; give the size of the head, k >= 1"
            )
        return self

    def identity(self) -> dict[str, Any]:
        kept = super().identity()
        if not self.rank_aware:
            del kept["k"]
        if self.beta == 0:
            del kept["form"]
        return kept
