"""What the processes of a training stage send one another in a step, and how long that takes. docs/costs.md derives the formulas.

With one process per device, DeepSpeed moves whole gradients and whole parameters; the ZeRO stage decides by which collective and how
often. `scripts/benchmarks/communication.py` counts what two processes really send.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config.base import Dtype
from pipeline.config.launch import Launch
from pipeline.costs.devices import Device, bytes_of

Collective = Literal["all-reduce", "all-gather", "reduce-scatter"]
_BUCKET = 5e8
"""Elements that DeepSpeed reduces or gathers in one message, by default."""
_REUSE = 1e9
"""Elements between two uses up to which ZeRO-3 keeps a parameter whole, by default."""
_GATHERS_PER_LAYER = 6
"""Messages in which ZeRO-3 gathers a layer: one per module with parameters of its own, some of them together."""


@dataclass(frozen=True)
class Transfer:
    """A collective, as often as one optimizer step needs it."""

    what: str
    collective: Collective
    size: float
    """Bytes of what is reduced or gathered, whole, over the step."""
    messages: float
    hidden_by: float
    """Share of the step's computation that can overlap with it; 0: all processes wait."""
    among: int | None = None
    """Size of the groups of processes that each run it among themselves; None: it runs over all processes."""

    def sent(self, processes: int) -> float:
        """Bytes that each of `processes` sends. Bandwidth-optimal rings (Patarasuk and Yuan 2009): twice around for an all-reduce."""
        processes = self.among or processes
        return self.size * (2 if self.collective == "all-reduce" else 1) * (processes - 1) / processes


def transfers(launch: Launch, parameters: int, layers: int, dtype: Dtype, *, micro_steps: int, forwards: int = 1) -> list[Transfer]:
    """Of one optimizer step, in which `micro_steps` micro-batches pass through the model: forward `forwards` times, and backward."""
    if launch.processes == 1:
        return []
    whole, stage = float(parameters * bytes_of(dtype)), launch.zero_stage
    buckets = math.ceil(parameters / _BUCKET)
    if stage == 0:  # after the last backward, in the weights' float32
        return [Transfer("gradients", "all-reduce", 4.0 * parameters, buckets, 0.0)]
    if stage < 3:
        times = 1 if stage == 1 else micro_steps
        backward = 2 / 3 if launch.zero.overlap_comm else 0.0  # of the passes after which gradients are reduced
        return [
            # DeepSpeed reduces with an all-reduce, and each process keeps its own part.
            Transfer("gradients", "all-reduce", whole * times, buckets * times, backward * times / micro_steps),
            Transfer("parameters", "all-gather", whole, buckets, 0.0),
        ]
    # Parameters are gathered for each forward, and for backward, which also recomputes from them. Between the last forward and
    # backward, those that are reused soon enough stay whole: the last layers', since twice their elements lie between the two uses.
    distance = _REUSE if launch.zero.stage3_max_reuse_distance is None else launch.zero.stage3_max_reuse_distance
    again = 1 - min(1.0, distance / 2 / parameters)
    hidden = 0.0 if launch.zero.overlap_comm is False else 1.0  # DeepSpeed's default at this stage: fetch layers while one computes
    node, messages = launch.zero.zero_hpz_partition_size, float(_GATHERS_PER_LAYER * layers * micro_steps)
    if node is None:
        passes = forwards + again
        gathers = [Transfer("parameters", "all-gather", whole * passes * micro_steps, messages * passes, hidden)]
    else:  # for backward from the node's own copy, and then all of it: nothing stays whole in between
        gathers = [
            Transfer("parameters", "all-gather", whole * forwards * micro_steps, messages * forwards, hidden),
            Transfer("parameters within a node", "all-gather", whole * micro_steps, messages, hidden, node),
        ]
    return [
        *gathers,
        Transfer("gradients", "reduce-scatter", whole * micro_steps, buckets * micro_steps, hidden),
    ]


@dataclass(frozen=True)
class Fabric:
    """How devices are connected: `per_node` of them in a node."""

    device: Device
    per_node: int
    efficiency: float = 0.8
    """Share of the links' nominal bandwidth that collectives reach: assumed."""
    latency: float = 5e-5
    """Seconds that a message takes beside its bytes: assumed."""
    overlap: float = 0.8
    """Share of the sending behind which computing really goes on, where it can: assumed."""

    def bandwidth(self, processes: int) -> float:
        """Bytes per second that each process sends in a collective over all.

        Rings enter and leave a node once for all of its devices, spread over its network adapters: so the node's whole network carries
        what a single device's link does, and the slower of the two decides.
        """
        if processes <= self.per_node:
            return self.device.link * self.efficiency
        return min(self.device.link, self.per_node * self.device.network) * self.efficiency

    def seconds(self, transfer: Transfer, processes: int) -> float:
        """Of one transfer, if nothing else is sent meanwhile."""
        bandwidth = self.bandwidth(transfer.among or processes)
        return transfer.sent(processes) / bandwidth + transfer.messages * self.latency

    def exposed(self, of_step: Sequence[Transfer], processes: int, computing: float) -> float:
        """Seconds by which a step that computes for `computing` seconds gets longer."""
        found = 0.0
        for share in {transfer.hidden_by for transfer in of_step}:
            sending = sum(self.seconds(transfer, processes) for transfer in of_step if transfer.hidden_by == share)
            found += sending - min(share * computing, self.overlap * sending)
        return found
