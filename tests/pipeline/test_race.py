"""Many commands on one home: each stage's work runs once, and nothing is lost."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import Graph, build_graph
from pipeline.store.folders import Home, verify_manifest
from tests.conftest import ROOT
from tests.pipeline.tiny import started

FIFTY = ("axes.prior=[ce, tail, head, precision, diversity]", "axes.seed=[0, 1, 2, 3, 4]", "rl=null")
DRIVERS = 8


def driver(home: Path, name: str, jobs: int, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.tiny.driver", name, str(jobs), *FIFTY],
        cwd=ROOT, env=os.environ | {"PRIORLAB_HOME": str(home), "TINY_LOG": str(home) + ".log"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def everything_is_there(home: Home) -> Graph:
    graph = build_graph(load_sweep("smoke", FIFTY).cells())
    assert len(graph.stages) == 51
    for node in graph.stages.values():
        record = node.folder(home).record()
        assert record is not None
        verify_manifest(node.folder(home).export, record["manifest"])
        assert (node.folder(home).export / "result.txt").read_text() == node.fingerprint
        assert not node.folder(home).is_held()
    return graph


def test_eight_commands_racing_on_fifty_stages_run_each_once(tmp_path: Path) -> None:
    drivers = [driver(tmp_path / "home", f"race-{number}", jobs=2) for number in range(DRIVERS)]
    outcomes = []
    for process in drivers:
        printed, notes = process.communicate(timeout=200)
        assert process.returncode == 0, notes
        outcomes.append(Counter(state for state, _ in json.loads(printed).values()))
    graph = everything_is_there(Home(tmp_path / "home"))
    begun = Counter(started(tmp_path / "home.log"))
    assert begun == {node.name: 1 for node in graph.stages.values()}
    assert sum(outcome["done"] for outcome in outcomes) == len(graph.stages)
    assert sum(outcome["done"] > 0 for outcome in outcomes) > 1  # it was a race
    assert all(len(node.folder(Home(tmp_path / "home")).attempts()) == 1 for node in graph.stages.values())


def test_commands_and_stages_killed_at_random_lose_nothing_and_no_stage_runs_twice_at_a_time(tmp_path: Path) -> None:
    home, chance = tmp_path / "home", random.Random(3)
    slow = {"TINY": json.dumps(dict.fromkeys(("corpus", "pretrain", "evaluate"), "takes 0.1"))}
    drivers = [driver(home, f"race-{number}", 2, **slow) for number in range(4)]
    for victim in range(3):
        time.sleep(chance.uniform(1.0, 2.0))
        drivers[victim].kill()
        drivers[victim].communicate()
    _, notes = drivers[3].communicate(timeout=200)
    assert drivers[3].returncode == 0, notes
    everything_is_there(Home(home))
    lines = [line.split() for line in Path(f"{home}.log").read_text().splitlines()]
    ended = Counter(name for what, name, *_ in lines if what == "end")
    assert set(ended) == {name for _, name, *_ in lines}
    for name in ended:  # whoever began it again found the one before dead: their lines do not cross
        mine = [(what, pid) for what, stage, pid, _ in lines if stage == name]
        for (what, pid), (after, next_pid) in itertools.pairwise(mine):
            assert what == "start" or after == "start", mine
            assert after == "start" or next_pid == pid, mine
