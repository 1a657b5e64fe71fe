"""Stages that are forked from a server (`pipeline.run.warm`): what they see, and how they and it end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import STOPPED_EXIT
from pipeline.experiment.graph import StageNode
from pipeline.home.processes import holders, runs_spec
from pipeline.run.launch import command, environment, process_environment, signal_session, start_process
from pipeline.run.warm import ForkedStage, WarmServer, warm_server
from pipeline.store.folders import Home
from tests.conftest import ROOT, FinishedSweep, Lab, finish, for_tests, server_for_tests, smoke_graph, start
from tests.stages.conftest import ready

CORPUS = ("corpus.documents=100000000",)
"""A stage that runs until it is ended."""


@pytest.fixture
def server() -> WarmServer:
    return server_for_tests()


def begin(lab: Lab, server: WarmServer, *overrides: str, **more: str) -> tuple[StageNode, ForkedStage | subprocess.Popen[bytes]]:
    node = ready(lab, smoke_graph(*overrides).cells[0].chain["corpus"])
    folder = lab.folder(node)
    lock = folder.lock()
    assert lock is not None
    seen = for_tests(environment(node, lock, "test")) | more
    with (folder.path / "out.log").open("ab") as log:
        words = command(node, folder)
        process = server.start(words, seen, log, lock) or start_process(words, seen, log, lock)
    os.close(lock)
    return node, process


def wait_for_status(lab: Lab, node: StageNode) -> None:
    deadline = time.time() + 100
    while not lab.folder(node).status.exists():
        assert time.time() < deadline, (lab.folder(node).path / "out.log").read_text()
        time.sleep(0.02)


def test_before_the_fork_neither_a_thread_nor_cuda_is_in_use(tmp_path: Path) -> None:
    """On a fresh machine too, where torch has compiled nothing yet."""
    code = (
        "import os, threading, stages.warm; stages.warm.prepare(); import torch, deepspeed, trl, vllm, wandb; "
        "print(threading.active_count(), len(os.listdir('/proc/self/task')), torch.cuda.is_initialized(), flush=True); os._exit(0)"
    )
    seen = process_environment(1, None, "test", hub=False) | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=seen, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["1 1 False"], done.stderr


def test_with_several_threads_there_is_no_server_that_could_break_a_stage(lab: Lab) -> None:
    """numpy's linear algebra starts its threads when it is imported."""
    server = WarmServer(for_tests(process_environment(2, None, "test", hub=False)))
    assert not server.is_starting(wait=300)
    _, process = begin(lab, server, "corpus.documents=50", OMP_NUM_THREADS="2")
    assert isinstance(process, subprocess.Popen)
    assert process.wait(timeout=200) == 0
    server.close()


def test_a_forked_stage_has_its_own_environment_session_streams_and_lock(lab: Lab, server: WarmServer) -> None:
    node, process = begin(lab, server, *CORPUS, PRIORLAB_COMMIT="of this stage")
    assert isinstance(process, ForkedStage)
    wait_for_status(lab, node)
    folder = lab.folder(node)
    try:
        assert json.loads(folder.status.read_text())["pid"] == process.pid == os.getsid(process.pid) == os.getpgid(process.pid)
        opened = Path(f"/proc/{process.pid}/fd")
        assert [(opened / str(number)).readlink() for number in (0, 1, 2)] == [Path(os.devnull), *2 * [folder.path / "out.log"]]
        assert holders(folder.path / "lock") == [process.pid]
        assert runs_spec(process.pid, folder.spec)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == STOPPED_EXIT
    assert not folder.is_held()
    process.send_signal(signal.SIGKILL)  # it has ended: nothing


def test_what_was_forked_can_be_killed(lab: Lab, server: WarmServer) -> None:
    node, process = begin(lab, server, *CORPUS)
    assert isinstance(process, ForkedStage)
    signal_session(process, signal.SIGKILL)  # it leads its session from the moment that its number is known
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not lab.folder(node).is_held()


def test_a_forked_stage_can_be_cancelled(lab: Lab, server: WarmServer) -> None:
    node, process = begin(lab, server, *CORPUS)
    assert isinstance(process, ForkedStage)
    wait_for_status(lab, node)
    assert lab.call("cancel", node.fingerprint[:8]).stdout == f"cancelled {node.name}\n"
    assert process.wait(timeout=60) == STOPPED_EXIT


def test_a_stage_with_another_environment_starts_cold(lab: Lab, server: WarmServer) -> None:
    _, process = begin(lab, server, "corpus.documents=50", NEW_SETTING="1")
    assert isinstance(process, subprocess.Popen)
    assert process.wait(timeout=200) == 0


def test_warm_and_cold_pretraining_end_with_the_same_weights(smoke: FinishedSweep, lab: Lab, tmp_path: Path) -> None:
    """A setting of the environment that nothing reads makes one start cold."""
    node, manifests = smoke.node("pretrain"), []
    for used, more, kind in ((lab, {}, ForkedStage), (Lab(Home(tmp_path / "cold")), {"NEW_SETTING": "1"}, subprocess.Popen)):
        ready(used, node, (smoke.lab, smoke.node("corpus")))
        process = start(used, node, **more)
        assert isinstance(process, kind)
        finish(used, node, process)
        record = used.folder(node).record()
        assert record is not None
        manifests.append(record["manifest"])
    assert manifests[0] == manifests[1]


def test_when_the_server_dies_its_stages_end_and_the_next_start_cold(lab: Lab) -> None:
    server = WarmServer(for_tests(process_environment(1, None, "test", hub=False)))
    assert not server.is_starting(wait=300)
    node, process = begin(lab, server, *CORPUS)
    assert isinstance(process, ForkedStage)
    wait_for_status(lab, node)
    server._process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    deadline = time.time() + 60
    while lab.folder(node).is_held():
        assert time.time() < deadline
        time.sleep(0.02)
    _, process = begin(lab, server, "corpus.documents=50")
    assert isinstance(process, subprocess.Popen)
    assert process.wait(timeout=200) == 0
    server.close()


def test_a_server_is_started_where_two_stages_could_use_it_and_on_no_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = smoke_graph("axes.prior=[ce]").stages.values()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert warm_server(stages, "test") is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert warm_server([node for node in stages if node.kind in ("corpus", "pretrain")], "test") is None
    assert warm_server(smoke_graph("axes.prior=[ce]", "rl=null", "pretrain.launch.processes=2").stages.values(), "test") is None
    server = warm_server(stages, "test")
    assert server is not None
    server.close()
