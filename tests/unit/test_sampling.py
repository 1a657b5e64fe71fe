"""What the plan says of an engine's memory and speed: by hand, and as laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.model import ModelConfig
from pipeline.costs.communication import Fabric
from pipeline.costs.devices import DEVICES
from pipeline.costs.sampling import Draw, Sampling
from pipeline.experiment.compose import load_recipe

H100 = DEVICES["h100"]
VOCABULARY = 151_936
DENSE = ModelConfig(layers=10, width=1024, ffn_width=4096, heads=16, kv_heads=8, head_dim=64, max_positions=8192)


def largest(**changes: Any) -> Sampling:
    """One process of the largest recipe samples by itself, for 32 responses of 8,192 tokens."""
    (cell,) = load_recipe("paper_20b_a1b").cells()
    planned = Sampling(cell.recipe.model, VOCABULARY, "bfloat16", (Draw(1, 32, 1024, 8192),), share=0.6)
    return replace(planned, **changes)


def test_the_largest_recipes_engine_by_hand() -> None:
    """20.04B parameters of 2 bytes; 25 layers x 4 key heads x 128 x keys and values x 2 bytes = 51,200 bytes a token."""
    whole = largest()
    split = replace(whole, parts=4)
    assert whole.weights == pytest.approx(40.1e9, rel=1e-3)
    assert (whole.token, split.token, replace(whole, parts=8).token) == (51_200, 12_800, 12_800)
    # 48 GB less the weights hold 7.9 GB / (51,200 x 9,216 tokens) = 16.8 responses; four such shares hold far more than 128.
    at_once = (0.6 * 80e9 - whole.weights) / (51_200 * 9_216)
    assert at_once == pytest.approx(16.8, abs=0.1)
    passes = 8_192 * 32 / at_once
    # Of 384 experts a token leaves 372 unread, 16.8 tokens leave 384 x (372 / 384)^16.8 = 225, with 2048 x 320 x 3 weights each.
    read = 2 * (20.04e9 - 151_936 * 2048 - 25 * 225 * 2048 * 320 * 3) + at_once * 51_200 * (1024 + 4096)
    assert whole.reading(H100) == pytest.approx(passes * read / (0.8 * 3.35e12), rel=0.01)
    assert whole.sums(H100, steps=1) is None
    sums = replace(split, draws=(Draw(1, 128, 1024, 8192),)).sums(H100, steps=1)
    assert sums is not None
    assert sums.messages == 8_192 * 2 * 25  # nobody waits
    # Four devices each send 2 x 3/4 of every token's width, twice a layer.
    assert sums.sent(64) == pytest.approx(128 * 9_216 * 2 * 25 * 2048 * 2 * 2 * 3 / 4)
    assert Fabric(H100, 8, efficiency=1, latency=0).seconds(sums, 64) == pytest.approx(sums.sent(64) / 450e9)


@given(parts=st.sampled_from([2, 4, 8]), sequences=st.integers(1, 64))
def test_parts_that_share_an_engine_share_its_reading(parts: int, sequences: int) -> None:
    """As many devices with an engine each for a part of the responses read the weights as often as there are devices."""
    draw = Draw(1, sequences * parts, 10, 500)
    together = Sampling(DENSE, VOCABULARY, "bfloat16", (draw,), 0.9, parts)
    alone = replace(together, parts=1, draws=(replace(draw, sequences=sequences),))
    assert together.reading(H100) < alone.reading(H100)
    saved = (alone.reading(H100) - together.reading(H100)) * 0.8 * H100.bandwidth
    assert saved == pytest.approx(500 * alone.weights * (1 - 1 / parts), rel=1e-6)


@given(share=st.floats(0.05, 0.9), more=st.floats(0.01, 0.1))
def test_a_larger_cache_never_slows_sampling(share: float, more: float) -> None:
    small = Sampling(DENSE, VOCABULARY, "bfloat16", (Draw(3, 500, 100, 4000),), share)
    assert replace(small, share=share + more).reading(H100) <= small.reading(H100)


def test_a_cache_too_small_for_one_sequence_does_not_fit() -> None:
    tight = largest(share=0.505)
    assert 0 < tight.cache(H100) < tight.longest
    assert not tight.fits(H100)
    assert replace(tight, share=0.51).fits(H100)
