"""The setting of the pre-training objective, and how it may change during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, execution, identity_since


class Rewards(Config):
    """What the shaped objective pays (arXiv 2512.22955, Eqs. 11-13); all zero is cross-entropy."""

    name: str = execution("custom")
    beta: float = Field(0.0, ge=-1.0, description="positive reward scaling; < 0 precision, > 0 diversity")
    lambda_head: float = Field(0.0, description="reward of wrong tokens inside the head")
    lambda_tail: float = Field(0.0, description="reward of tokens outside the head")


SCHEDULED = tuple(name for name in Rewards.model_fields if name != "name")
"""What a schedule may change."""


class Waypoint(Rewards):
    """Rewards that apply from some point on (`step`), or are reached by then (`linear`)."""

    at: float = Field(gt=0, le=1, description="share of the token budget")
    k: int | None = execution(None, description="may repeat the prior's")
    form: Literal["product", "power"] | None = execution(None, description="may repeat the prior's")


class Prior(Rewards):
    """Setting of the shaped next-token objective, constant or on a schedule over the training tokens.

    `k` is the size of the head (the k most probable tokens). It matters only when a lambda is not zero, `form` only when beta is not.
    Both apply to the whole schedule, and so does `temperature`. The losses take the setting at one point, `at(share)`.
    """

    k: int = Field(0, ge=0, description="size of the head, in tokens")
    form: Literal["product", "power"] = "product"
    temperature: float = identity_since(1.0, gt=0, description="what exports have their logits divided by; training does not see it")
    schedule: tuple[Waypoint, ...] = identity_since((), description="later rewards, in order of time")
    interpolation: Literal["step", "linear"] = identity_since("step", description="how the schedule moves between waypoints")

    def knobs(self) -> dict[str, float | int | str]:
        """Every knob by name, for tables and W&B; k is 0 if no reward depends on rank."""
        values = {name: getattr(self, name) for name in KNOBS}
        return values if self.rank_aware else values | {"k": 0}

    @property
    def rank_aware(self) -> bool:
        """Whether any reward, now or later, depends on a token's rank."""
        return any(rewards.lambda_head != 0 or rewards.lambda_tail != 0 for rewards in (self, *self.schedule))

    def at(self, share: float) -> Prior:
        """The setting, without a schedule, once `share` (0 to 1) of the token budget is consumed."""
        if not self.schedule:
            return self
        shares = [0.0, *(waypoint.at for waypoint in self.schedule)]
        stops: list[Rewards] = [self, *self.schedule]
        last = max(index for index, reached in enumerate(shares) if reached <= share)
        here, there, way = stops[last], stops[last], 0.0
        if self.interpolation == "linear" and last + 1 < len(stops):
            there, way = stops[last + 1], (share - shares[last]) / (shares[last + 1] - shares[last])

        def between(reward: str) -> float:
            start = getattr(here, reward)
            return float(start + way * (getattr(there, reward) - start))

        now = {reward: between(reward) for reward in SCHEDULED}
        return Prior(name=here.name, k=self.k, form=self.form, temperature=self.temperature, **now)

    @model_validator(mode="after")
    def _schedule_is_in_order(self) -> Prior:
        shares = [waypoint.at for waypoint in self.schedule]
        if shares != sorted(set(shares)):
            raise ValueError(f"schedule has at {shares}; the shares of the token budget must increase")
        if self.interpolation == "step" and 1.0 in shares:
            raise ValueError("schedule has a waypoint at 1, where training ends: nothing would train with it; give a share below 1")
        return self

    @model_validator(mode="after")
    def _head_and_form_stay(self) -> Prior:
        for number, waypoint in enumerate(self.schedule):
            for key, whole in (("k", self.k), ("form", self.form)):
                own = getattr(waypoint, key)
                if own not in (None, whole):
                    raise ValueError(
                        f"schedule.{number}.{key} is {own}, but {key} is {whole} at the start; the whole schedule shares one: "
                        f"set {key}: {own} beside `schedule`, or {key}: {whole} in the waypoint"
                    )
        return self

    @model_validator(mode="after")
    def _head_needs_a_size(self) -> Prior:
        for rewards in (self, *self.schedule):
            if self.k < 1 and (rewards.lambda_head != 0 or rewards.lambda_tail != 0):
                raise ValueError(
                    f"k is {self.k}, but lambda_head={rewards.lambda_head:g} and lambda_tail={rewards.lambda_tail:g} "
                    "reward tokens by rank; give the size of the head, k >= 1"
                )
        return self

    def identity(self) -> dict[str, Any]:
        kept = super().identity()
        if not self.rank_aware:
            del kept["k"]
        if all(rewards.beta == 0 for rewards in (self, *self.schedule)):
            del kept["form"]
        if not self.schedule:
            kept.pop("interpolation", None)
        return kept


KNOBS = (*SCHEDULED, "k", "form")
"""All knobs of the objective, in the order in which tables show them."""
_RENAMING = (*SCHEDULED, "temperature", "schedule", "interpolation")


def renaming(changes: dict[str, Any], prior: dict[str, Any]) -> dict[str, Any]:
    """Those of a named prior's changes that give it a new name. k only fits it to a vocabulary; `form` needs a beta to matter."""
    shaped = bool(prior.get("beta") or prior.get("schedule"))
    return {key: value for key, value in changes.items() if key in _RENAMING or (key == "form" and shaped)}


def with_waypoints(prior: dict[str, Any], named: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A prior as written, with each waypoint of its schedule that uses a name resolved by `named`.

    A name brings its rewards; a `k` set for the whole prior stays.
    """
    if not isinstance(prior.get("schedule"), list):
        return prior

    def waypoint(node: Any) -> Any:
        if not isinstance(node, dict) or "use" not in node:
            return node
        found = named(node)
        return found if prior.get("k") is None or "k" in node else {key: value for key, value in found.items() if key != "k"}

    return prior | {"schedule": [waypoint(node) for node in prior["schedule"]]}
