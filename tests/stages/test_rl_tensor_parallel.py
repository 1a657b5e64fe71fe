"""RL with one engine for two processes: they draw as one, each learns from its own part, and a killed stage goes on exactly."""

from __future__ import annotations

from pathlib import Path

from pipeline.store.folders import Home
from tests.conftest import FinishedSweep, Lab, finish, start
from tests.stages.conftest import DYNAMIC, rl_stage
from tests.stages.test_rl_resume import DIES, TWO, assert_same, die_after_draw, draws

TOGETHER = (
    *DYNAMIC,
    *TWO,
    "rl.launch.zero_stage=2",
    "rl.engine.tensor_parallel=2",
    "rl.validation={every: 4, problems: 4, samples: 4}",
)


def test_two_processes_sample_as_one_engine_and_resume_exactly(smoke: FinishedSweep, tmp_path: Path) -> None:
    """A part of the engine that drew other tokens than its fellow, or a process that took the other's responses, would have log-probs
    that are not the trainer's.
    """
    whole, interrupted = (Lab(Home(tmp_path / name)) for name in ("whole", "interrupted"))
    expected = whole, rl_stage(whole, smoke, *TOGETHER)
    logged = [row for row in finish(*expected, start(*expected, DIES, DRAWS_TO=str(tmp_path / "whole.draws"))) if "loss" in row]
    assert max(row["sampling/sampling_logp_difference/max"] for row in logged) < 1e-4
    for mine, other in zip(*(draws(tmp_path / "whole.draws", rank) for rank in (0, 1)), strict=True):
        assert not dict(mine).keys() & dict(other).keys()
    found = interrupted, rl_stage(interrupted, smoke, *TOGETHER)
    die_after_draw(2, *found, tmp_path / "before")
    finish(*found, start(*found, DIES, DRAWS_TO=str(tmp_path / "after")))
    for rank in (0, 1):
        assert draws(tmp_path / "after", rank) == draws(tmp_path / "whole.draws", rank)[1:]
    assert_same(found, expected)
