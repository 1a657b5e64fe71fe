"""How fast vLLM can sample, and what it holds: docs/costs.md derives the formulas.

For each token of a response a device reads the weights that concurrent responses pass through, and all of their keys and values.
How many run concurrently is up to the cache, which is what an engine's share of a device leaves beside the weights. Tensor
parallelism splits both over devices, which then sum what each has computed, twice a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.base import Dtype
from pipeline.config.model import ModelConfig
from pipeline.costs.communication import Transfer
from pipeline.costs.devices import Device, bytes_of

_READ = 0.8
"""Share of a device's memory bandwidth that reading reaches: assumed."""


@dataclass(frozen=True)
class Draw:
    """Responses that one engine is asked for at a time, `times` times (which need not be whole)."""

    times: float
    sequences: int
    prompt: int
    response: int
    """Tokens each."""


@dataclass(frozen=True)
class Sampling:
    """The draws of one of a stage's engines, all of which do the same; `parts` devices hold it together."""

    model: ModelConfig
    vocabulary: int
    dtype: Dtype
    draws: tuple[Draw, ...]
    share: float
    """Of the memory of each device, for the engine."""
    parts: int = 1
    most: int | None = None
    """Concurrent responses, however much the cache holds; None: all."""

    @property
    def weights(self) -> float:
        """Bytes per device."""
        return self.model.parameters(self.vocabulary).total * bytes_of(self.dtype) / self.parts

    @property
    def token(self) -> float:
        """Bytes of a token's keys and values per device; with more parts than heads of these, some have the same."""
        heads = self.model.kv_heads / min(self.parts, self.model.kv_heads)
        return 2 * self.model.layers * heads * self.model.head_dim * bytes_of(self.dtype)

    @property
    def longest(self) -> float:
        """Bytes of the longest sequence's keys and values per device."""
        return self.token * max(draw.prompt + draw.response for draw in self.draws)

    @property
    def wanted(self) -> float:
        """Bytes of a cache per device in which no sequence waits."""
        return max(self.token * self._wanted_at_once(draw) * (draw.prompt + draw.response) for draw in self.draws)

    def cache(self, device: Device) -> float:
        """Bytes per device: vLLM takes its whole share. Negative if that does not hold the weights."""
        return self.share * device.memory - self.weights

    def fits(self, device: Device) -> bool:
        """Whether the longest sequence fits into the cache; otherwise vLLM refuses to start."""
        return self.cache(device) >= self.longest

    def reading(self, device: Device) -> float:
        """Seconds in which each device reads weights, keys and values, over all draws."""
        read = 0.0
        for draw in self.draws:
            at_once = self._at_once(draw, device)
            of_step = self._weights_read(at_once) + at_once * self.token * (draw.prompt + draw.response / 2)
            read += self._passes(draw, device) * of_step
        return read / (_READ * device.bandwidth)

    def sums(self, device: Device, steps: int) -> Transfer | None:
        """What the parts of an engine send one another, per training step of `steps`; None for a whole engine."""
        if self.parts == 1:
            return None
        size = 2 * self.model.layers * self.model.width * bytes_of(self.dtype)  # of a token: after attention and after the experts
        tokens = sum(draw.times * draw.sequences * (draw.prompt + draw.response) for draw in self.draws)
        messages = 2 * self.model.layers * sum(self._passes(draw, device) for draw in self.draws)
        return Transfer("sums while sampling", "all-reduce", size * tokens / steps, messages / steps, 0.0, among=self.parts)

    def _wanted_at_once(self, draw: Draw) -> int:
        return draw.sequences if self.most is None else min(self.most, draw.sequences)

    def _at_once(self, draw: Draw, device: Device) -> float:
        fitting = self.cache(device) / (self.token * (draw.prompt + draw.response))
        return max(1.0, min(self._wanted_at_once(draw), fitting))

    def _passes(self, draw: Draw, device: Device) -> float:
        """Forward passes with a token of each concurrent sequence: places that become free are taken at once."""
        return draw.times * draw.response * draw.sequences / self._at_once(draw, device)

    def _weights_read(self, at_once: float) -> float:
        """Bytes of weights read per device and pass; of experts, those that at least one of `at_once` tokens is expected to choose."""
        counts = self.model.parameters(self.vocabulary)
        read, moe = float(counts.total - counts.embedding + self.vocabulary * self.model.width), self.model.moe
        if moe is not None:
            idle = 1 - moe.active_experts / moe.experts
            routed = (counts.total - counts.active) / idle if idle else 0.0
            read -= routed * idle**at_once
        return read * bytes_of(self.dtype) / self.parts
