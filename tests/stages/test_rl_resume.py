"""RL killed at any moment and started again: the same samples, losses and policy as if never interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.experiment.graph import StageNode
from pipeline.store.folders import Home
from tests.conftest import FinishedSweep, Lab, finish, kill_once_saved, rows, start
from tests.stages.conftest import DYNAMIC, rl_stage

DIES = "tests.stages.rl_that_dies"
TWO = ("rl.launch.processes=2", "rl.launch.micro_batch=4")


def assert_same(found: tuple[Lab, StageNode], expected: tuple[Lab, StageNode]) -> None:
    """All that is logged but times, and the weights bit for bit."""
    for row, other in zip(rows(*found), rows(*expected), strict=True):
        for metric in other:
            if not metric.startswith(("step_time", "profiling")):
                assert row[metric] == other[metric], (row["step"], metric)
    ours, theirs = (load_file(lab.folder(node).export / "model.safetensors") for lab, node in (found, expected))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def draws(path: Path, rank: int = 0) -> list[list[tuple[str, list[list[int]]]]]:
    """(prompt, responses) of each group of each draw."""
    return [json.loads(line) for line in Path(f"{path}.{rank}").read_text().splitlines()]


def die_after_draw(number: int, lab: Lab, node: StageNode, to: Path) -> None:
    process = start(lab, node, DIES, DRAWS_TO=str(to), DIES_AFTER_DRAW=str(number))
    assert process.wait(timeout=200) != 0
    assert Path(f"{to}.0").exists(), (lab.folder(node).path / "out.log").read_text()
    assert lab.folder(node).record() is None
    assert len(draws(to)) == number


def test_killed_between_sampling_and_update_while_saving_and_before_the_record(smoke: FinishedSweep, lab: Lab, tmp_path: Path) -> None:
    node = rl_stage(lab, smoke)
    assert node.fingerprint == smoke.node("rl").fingerprint
    die_after_draw(2, lab, node, tmp_path / "draws")
    kill_once_saved(lab, node, step=2, halfway=True)
    kill_once_saved(lab, node, step=3)
    finish(lab, node, start(lab, node))
    assert_same((lab, node), (smoke.lab, smoke.node("rl")))


def test_two_processes_under_zero_2_killed_between_sampling_and_update(smoke: FinishedSweep, tmp_path: Path) -> None:
    """With dynamic sampling and four updates per rollout; every rank samples its own groups."""
    whole, interrupted = (Lab(Home(tmp_path / name)) for name in ("whole", "interrupted"))
    overrides = (*DYNAMIC, *TWO, "rl.launch.zero_stage=2")
    expected = whole, rl_stage(whole, smoke, *overrides)
    logged = finish(*expected, start(*expected, DIES, DRAWS_TO=str(tmp_path / "whole.draws")))
    assert logged[0]["rollouts_generated"] % (2 * 8) == 0
    assert logged[0]["rollouts_used"] <= 4 * 8
    assert max(row["sampling/sampling_logp_difference/max"] for row in logged) < 1e-4
    assert draws(tmp_path / "whole.draws", rank=0) != draws(tmp_path / "whole.draws", rank=1)
    found = interrupted, rl_stage(interrupted, smoke, *overrides)
    assert found[1].fingerprint != rl_stage(Lab(Home(tmp_path / "one")), smoke, *DYNAMIC).fingerprint
    die_after_draw(2, *found, tmp_path / "before")
    finish(*found, start(*found, DIES, DRAWS_TO=str(tmp_path / "after")))
    for rank in (0, 1):
        assert draws(tmp_path / "after", rank) == draws(tmp_path / "whole.draws", rank)[1:]
    assert_same(found, expected)


def test_two_processes_under_zero_3_killed_while_saving(smoke: FinishedSweep, tmp_path: Path) -> None:
    whole, interrupted = (Lab(Home(tmp_path / name)) for name in ("whole", "interrupted"))
    overrides = (*TWO, "rl.launch.zero_stage=3")
    expected = whole, rl_stage(whole, smoke, *overrides)
    logged = finish(*expected, start(*expected))
    assert max(row["sampling/sampling_logp_difference/max"] for row in logged) < 1e-4
    found = interrupted, rl_stage(interrupted, smoke, *overrides)
    kill_once_saved(*found, step=2, halfway=True)
    finish(*found, start(*found))
    assert_same(found, expected)


@pytest.mark.parametrize("processes", [(), TWO], ids=["one process", "two"])
def test_killed_in_a_later_pass_over_the_problems(processes: tuple[str, ...], smoke: FinishedSweep, tmp_path: Path) -> None:
    whole, interrupted = (Lab(Home(tmp_path / name)) for name in ("whole", "interrupted"))
    two_steps_a_pass = ("rl.problems=8", "rl.steps=7", *processes)
    expected = whole, rl_stage(whole, smoke, *two_steps_a_pass)
    finish(*expected, start(*expected))
    found = interrupted, rl_stage(interrupted, smoke, *two_steps_a_pass)
    kill_once_saved(*found, step=3)
    kill_once_saved(*found, step=4)
    finish(*found, start(*found))
    assert_same(found, expected)


def test_the_seed_decides_the_samples(smoke: FinishedSweep, tmp_path: Path) -> None:
    """Compared on the problems that both seeds start with, since a seed also chooses the problems."""
    many = ("rl.prompts_per_step=16", "rl.launch.micro_batch=128")
    found: dict[str, dict[str, list[list[int]]]] = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        lab = Lab(Home(tmp_path / name))
        die_after_draw(1, lab, rl_stage(lab, smoke, *many, seed=seed), tmp_path / f"{name}.draws")
        found[name] = dict(draws(tmp_path / f"{name}.draws")[0])
    assert found["first"] == found["again"]
    common = found["first"].keys() & found["other"].keys()
    assert len(common) > 1
    assert all(found["first"][prompt] != found["other"][prompt] for prompt in common)
