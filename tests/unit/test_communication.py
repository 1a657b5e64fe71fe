"""What processes send one another, and the time that takes: invariants of the formulas, and the plan's figures by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.launch import Launch, ZeroOptions
from pipeline.costs.communication import Fabric, Transfer, transfers
from pipeline.costs.devices import DEVICES

H100 = DEVICES["h100"]
BILLION = 10**9


def sent(zero_stage: int, *, micro_steps: int = 4, processes: int = 64, parameters: int = 20 * BILLION, **launch: Any) -> float:
    """GB that each process sends in a step, in bfloat16."""
    of_step = transfers(
        Launch(zero_stage=zero_stage, processes=processes, **launch), parameters, 25, "bfloat16", micro_steps=micro_steps
    )  # fmt: skip
    return sum(one.sent(processes) for one in of_step) / 1e9


def test_a_single_process_sends_nothing() -> None:
    assert transfers(Launch(zero_stage=3), BILLION, 10, "bfloat16", micro_steps=4) == []


def test_bytes_of_each_stage_by_hand() -> None:
    """20B parameters in bfloat16 are 40 GB. Of these, ZeRO-3 keeps 0.5B between forward and backward."""
    ring = 63 / 64
    assert sent(1) == pytest.approx(ring * (2 * 40 + 40))
    assert sent(2) == pytest.approx(ring * (4 * 2 * 40 + 40))
    assert sent(3) == pytest.approx(ring * 4 * (40 + 39 + 40))
    assert sent(3, zero=ZeroOptions(stage3_max_reuse_distance=0)) == pytest.approx(ring * 4 * 3 * 40)
    of_nodes = sent(3, zero=ZeroOptions(zero_hpz_partition_size=8))
    assert of_nodes == pytest.approx(4 * (ring * 40 + 7 / 8 * 40 + ring * 40))
    of_step = transfers(Launch(zero_stage=0, processes=64), 20 * BILLION, 25, "float32", micro_steps=4)
    assert sum(one.sent(64) for one in of_step) / 1e9 == pytest.approx(ring * 2 * 80)


@given(stage=st.integers(1, 3), micro_steps=st.integers(1, 16))
def test_only_stages_that_reduce_every_micro_step_send_more_with_more_of_them(stage: int, micro_steps: int) -> None:
    more = sent(stage, micro_steps=micro_steps + 1) > sent(stage, micro_steps=micro_steps)
    assert more == (stage > 1)


def test_a_collective_over_nodes_is_as_fast_as_its_slowest_link() -> None:
    transfer = Transfer("gradients", "all-reduce", 64e9, 0, 0.0)
    inside = Fabric(H100, per_node=8, efficiency=1, latency=0)
    assert inside.seconds(transfer, 8) == pytest.approx(2 * 64e9 * 7 / 8 / 450e9)
    # Eight adapters of 50 GB/s carry 400 GB/s, less than a device's 450 GB/s within the node.
    assert inside.seconds(transfer, 64) == pytest.approx(2 * 64e9 * 63 / 64 / 400e9)
    assert replace(inside, per_node=1).seconds(transfer, 64) == pytest.approx(2 * 64e9 * 63 / 64 / 50e9)


@given(
    size=st.floats(0, 1e12), hidden_by=st.sampled_from([0.0, 2 / 3, 1.0]), computing=st.floats(0, 100), overlap=st.floats(0, 1),
)  # fmt: skip
def test_what_is_exposed_lies_between_nothing_and_all_of_it(size: float, hidden_by: float, computing: float, overlap: float) -> None:
    transfer, fabric = Transfer("parameters", "all-gather", size, 3, hidden_by), Fabric(H100, 8, overlap=overlap)
    whole = fabric.seconds(transfer, 16)
    exposed = fabric.exposed([transfer], 16, computing)
    assert -1e-12 <= exposed <= whole * (1 + 1e-12)
    assert exposed >= whole - hidden_by * computing - 1e-12
