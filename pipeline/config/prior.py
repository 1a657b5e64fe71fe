"""Priors: the objective of pre-training with its knobs, constant or on a schedule over the training tokens.

One config class per objective; `Prior` is discriminated by `kind`, `shaped` unless given. The kind is also the name of the objective's
module in `stages/objective`, which has its formula and its source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import Config, execution, identity_since


class Knobs(Config):
    """What any objective has at any moment of training. A subclass has its `kind` and its knobs; schedules may change them."""

    name: str = execution("custom")
    z_loss: float = identity_since(0.0, ge=0, description="weight of (log of the sum of exp(logits))^2, on top of the objective")


class ShapedKnobs(Knobs):
    """The rewards of the shaped objective (arXiv 2512.22955, Eqs. 11-13); all zero is cross-entropy."""

    kind: Literal["shaped"] = identity_since("shaped")
    beta: float = Field(0.0, ge=-1.0, description="positive reward scaling; < 0 precision, > 0 diversity")
    lambda_head: float = Field(0.0, description="reward of wrong tokens inside the head")
    lambda_tail: float = Field(0.0, description="reward of tokens outside the head")

    @property
    def rank_aware(self) -> bool:
        """Whether a reward depends on a token's rank."""
        return self.lambda_head != 0 or self.lambda_tail != 0


class FocalKnobs(Knobs):
    """Focal loss (arXiv 1708.02002)."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0, description="exponent of 1 - probability of the true token; 0 is cross-entropy")


class DeformedKnobs(Knobs):
    """The deformed logarithm (arXiv 2510.00526); alpha = 1 is dynamic fine-tuning (arXiv 2508.05629)."""

    kind: Literal["deformed"] = "deformed"
    alpha: float = Field(0.5, ge=0, description="how much the gradient favours tokens that are probable already; 0 is cross-entropy")


class GemKnobs(Knobs):
    """GEM (arXiv 2408.16673)."""

    kind: Literal["gem"] = "gem"
    tau: float = Field(0.7, ge=0.01, le=100, description="temperature of the distribution that meets the data; 1 is cross-entropy")


class EntropyKnobs(Knobs):
    """Cross-entropy with a bonus for entropy, gated as in arXiv 2602.07464."""

    kind: Literal["entropy"] = "entropy"
    alpha: float = Field(0.1, ge=-1, description="weight of the entropy; 0 is cross-entropy, < 0 sharpens")
    gate: float = Field(1.0, ge=0, le=1, description="largest probability of the top two at which the bonus counts; 1: everywhere")


class SmoothingKnobs(Knobs):
    """Label smoothing (arXiv 1512.00567)."""

    kind: Literal["smoothing"] = "smoothing"
    epsilon: float = Field(0.1, ge=0, le=1, description="share of each target that is spread over the vocabulary; 0 is cross-entropy")


class CoverageKnobs(Knobs):
    """Coverage of whole responses (arXiv 2502.07154); only a stage whose text has responses can train with it."""

    kind: Literal["coverage"] = "coverage"
    attempts: float = Field(16.0, ge=1, le=1e6, description="samples of which one should hit the response; 1 is cross-entropy")


class _At(Knobs):
    """Knobs that apply from some point on (`step`), or are reached by then (`linear`)."""

    at: float = Field(gt=0, le=1, description="share of the token budget")
    k: int | None = execution(None, description="may repeat the prior's")


class ShapedWaypoint(ShapedKnobs, _At):
    form: Literal["product", "power"] | None = execution(None, description="may repeat the prior's, if that is shaped too")


class FocalWaypoint(FocalKnobs, _At):
    pass


class DeformedWaypoint(DeformedKnobs, _At):
    pass


class GemWaypoint(GemKnobs, _At):
    pass


class EntropyWaypoint(EntropyKnobs, _At):
    pass


class SmoothingWaypoint(SmoothingKnobs, _At):
    pass


class CoverageWaypoint(CoverageKnobs, _At):
    pass


Waypoint = Annotated[
    ShapedWaypoint | FocalWaypoint | DeformedWaypoint | GemWaypoint | EntropyWaypoint | SmoothingWaypoint | CoverageWaypoint,
    Field(discriminator="kind"),
]


class PriorConfig(Knobs):
    """What every prior has beside its objective's knobs; all of it holds for the whole schedule.

    `k` is the size of the head (the k most probable tokens). It matters only where a reward depends on rank; every prior has it, so
    that a recipe can fit it to its vocabulary. The losses take the setting at one point, `at(share)`.
    """

    kind: str
    k: int = execution(0, ge=0, description="size of the head, in tokens")
    temperature: float = identity_since(1.0, gt=0, description="what exports have their logits divided by; training does not see it")
    normalize: bool = identity_since(False, description="divide the gradient by the mean weight of its tokens")
    schedule: tuple[Waypoint, ...] = identity_since((), description="later knobs, in order of time")
    interpolation: Literal["step", "linear"] = identity_since("step", description="how the schedule moves between waypoints")

    def knobs(self) -> dict[str, float | int | str]:
        """Every knob of the objective by name, for tables and W&B; what any objective may have on top only if it is set."""
        own = {name: getattr(self, name) for name in type(self).model_fields if name not in _NO_KNOBS}
        return own | {name: getattr(self, name) for name in ("z_loss", "normalize") if getattr(self, name)}

    @property
    def knobs_text(self) -> str:
        """The knobs that matter, as `beta=-0.25 form=product`; of the shaped objective those that are not 0, `beta=0` for none."""
        matter, knobs = self.identity(), self.knobs()
        shown = {name: value for name, value in knobs.items() if name in matter and (self.kind != "shaped" or value != 0)}
        return (
            " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in shown.items())
            or "beta=0"
        )

    @property
    def rank_aware_ever(self) -> bool:
        """Whether any reward, now or later, depends on a token's rank."""
        return any(stop.rank_aware for stop in self._shaped)

    @property
    def needs_responses(self) -> bool:
        """Whether it can train, now or later, only on text that tells responses from prompts."""
        return any(stop.kind == "coverage" for stop in self._stops)

    def at(self, share: float) -> Prior:
        """The setting, without a schedule, once `share` (0 to 1) of the token budget is consumed."""
        if not self.schedule:
            return self  # type: ignore[return-value]  # any subclass is one of the union
        shares = [0.0, *(waypoint.at for waypoint in self.schedule)]
        last = max(index for index, reached in enumerate(shares) if reached <= share)
        here = self._stops[last]
        now = {name: getattr(here, name) for name in _scheduled(here.kind)}
        if self.interpolation == "linear" and last + 1 < len(shares):
            way = (share - shares[last]) / (shares[last + 1] - shares[last])
            now = {name: float(start + way * (getattr(self._stops[last + 1], name) - start)) for name, start in now.items()}
        if here.kind == "shaped":
            now["form"] = getattr(self, "form", None) or here.form or "product"
        whole = {"name": here.name, "k": self.k, "temperature": self.temperature, "normalize": self.normalize}
        return _PRIORS[here.kind](**whole, **now)

    @property
    def _stops(self) -> list[Any]:
        return [self, *self.schedule]

    @property
    def _shaped(self) -> list[ShapedKnobs]:
        return [stop for stop in self._stops if isinstance(stop, ShapedKnobs)]

    @model_validator(mode="before")
    @classmethod
    def _waypoints_keep_the_kind(cls, value: Any) -> Any:
        """A waypoint that names no kind has the prior's."""
        if not isinstance(value, dict) or not isinstance(value.get("schedule"), list | tuple):
            return value
        kind = {"kind": value.get("kind", "shaped")}
        return value | {"schedule": [kind | one if isinstance(one, dict) else one for one in value["schedule"]]}

    @model_validator(mode="after")
    def _schedule_is_in_order(self) -> PriorConfig:
        shares = [waypoint.at for waypoint in self.schedule]
        if shares != sorted(set(shares)):
            raise ValueError(f"schedule has at {shares}; the shares of the token budget must increase")
        if self.interpolation == "step" and 1.0 in shares:
            raise ValueError("schedule has a waypoint at 1, where training ends: nothing would train with it; give a share below 1")
        return self

    @model_validator(mode="after")
    def _kinds_have_nothing_in_between(self) -> PriorConfig:
        for number, waypoint in enumerate(self.schedule):
            if self.interpolation == "linear" and waypoint.kind != self.kind:
                raise ValueError(
                    f"schedule.{number}.kind is {waypoint.kind}, but kind is {self.kind} at the start; linear interpolation stays "
                    "within one kind: write cross-entropy as a value of its knobs, or take interpolation: step"
                )
        return self

    @model_validator(mode="after")
    def _head_and_form_stay(self) -> PriorConfig:
        whole = {"k": self.k} | ({"form": self.form} if isinstance(self, ShapedPrior) else {})
        for number, waypoint in enumerate(self.schedule):
            for key, value in whole.items():
                own = getattr(waypoint, key, None)
                if own not in (None, value):
                    raise ValueError(
                        f"schedule.{number}.{key} is {own}, but {key} is {value} at the start; the whole schedule shares one: "
                        f"set {key}: {own} beside `schedule`, or {key}: {value} in the waypoint"
                    )
        return self

    @model_validator(mode="after")
    def _head_needs_a_size(self) -> PriorConfig:
        for stop in self._shaped:
            if self.k < 1 and stop.rank_aware:
                raise ValueError(
                    f"k is {self.k}, but lambda_head={stop.lambda_head:g} and lambda_tail={stop.lambda_tail:g} "
                    "reward tokens by rank; give the size of the head, k >= 1"
                )
        return self

    def identity(self) -> dict[str, Any]:
        kept = super().identity()
        if self.rank_aware_ever:
            kept["k"] = self.k
        if not self.schedule:
            kept.pop("interpolation", None)
        elif self.kind != "shaped":  # then a shaped waypoint's form is its own
            kept["schedule"] = [
                one.identity() | ({"form": one.form or "product"} if isinstance(one, ShapedWaypoint) and one.beta else {})
                for one in self.schedule
            ]
        return kept


class ShapedPrior(ShapedKnobs, PriorConfig):
    """The shaped objective. `form` matters only when beta is not zero."""

    form: Literal["product", "power"] = "product"

    def knobs(self) -> dict[str, float | int | str]:
        """k is 0 if no reward depends on rank."""
        return super().knobs() | {"k": self.k if self.rank_aware_ever else 0}

    def identity(self) -> dict[str, Any]:
        kept = super().identity()
        if all(stop.beta == 0 for stop in self._shaped):
            del kept["form"]
        return kept


class FocalPrior(FocalKnobs, PriorConfig):
    pass


class DeformedPrior(DeformedKnobs, PriorConfig):
    pass


class GemPrior(GemKnobs, PriorConfig):
    pass


class EntropyPrior(EntropyKnobs, PriorConfig):
    pass


class SmoothingPrior(SmoothingKnobs, PriorConfig):
    pass


class CoveragePrior(CoverageKnobs, PriorConfig):
    pass


def _shaped_unless_given(value: Any) -> Any:
    return {"kind": "shaped"} | value if isinstance(value, dict) else value


_AnyPrior = ShapedPrior | FocalPrior | DeformedPrior | GemPrior | EntropyPrior | SmoothingPrior | CoveragePrior
Prior = Annotated[_AnyPrior, Field(discriminator="kind"), BeforeValidator(_shaped_unless_given)]
_PRIORS: dict[str, Any] = {one.model_fields["kind"].default: one for one in get_args(_AnyPrior)}
_NO_KNOBS = frozenset(PriorConfig.model_fields)
"""What every prior has, whatever its objective."""


def _scheduled(kind: str) -> list[str]:
    """What a schedule may change while the kind stays: numbers."""
    return ["z_loss", *(name for name in _PRIORS[kind].model_fields if name not in _NO_KNOBS and name != "form")]


def renaming(changes: dict[str, Any], prior: dict[str, Any]) -> dict[str, Any]:
    """Those of a named prior's changes that give it a new name. k only fits it to a vocabulary; `form` needs a beta to matter."""
    shaped = bool(prior.get("beta") or prior.get("schedule"))
    return {key: value for key, value in changes.items() if key not in ("k", "at") and (key != "form" or shaped)}


def written_waypoint(node: Any, named: Callable[[Any], dict[str, Any]], prior: dict[str, Any]) -> Any:
    """A waypoint as written, resolved by `named` if it uses a name.

    A name brings its kind and knobs; a `k` set for the whole prior stays.
    """
    if not isinstance(node, dict) or "use" not in node:
        return node
    found = {"kind": "shaped"} | named(node)
    return found if prior.get("k") is None or "k" in node else {key: value for key, value in found.items() if key != "k"}
