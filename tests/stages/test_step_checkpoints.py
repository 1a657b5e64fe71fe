"""Step checkpoints: whole or not used, never poisoned, and written when the stage is asked to stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

from pipeline.config.launch import Launch
from pipeline.errors import STOPPED_EXIT, DivergedError, Stopped
from pipeline.store.files import manifest_of, write_json_atomically
from stages.contract import Stage
from stages.guard import Guard
from stages.training.ranks import Ranks
from stages.training.step_checkpoints import StepCheckpoints, last_complete, seconds_until
from tests.conftest import FinishedSweep, Lab, finish, kill_once_saved, rows, smoke_graph, start
from tests.stages.test_pretrain import LOGGED, pretraining, weights
from tests.unit import crash_points


def test_training_asked_to_stop_saves_at_the_next_logged_step_and_resumes_to_the_same_weights(smoke: FinishedSweep, lab: Lab) -> None:
    node = pretraining(lab, smoke, "pretrain.launch.save_steps=300")  # no step is saved unless asked
    folder = lab.folder(node)
    process = start(lab, node)
    deadline = time.time() + 200
    while not (folder.metrics.exists() and folder.metrics.read_text()):
        assert process.poll() is None, (folder.path / "out.log").read_text()
        assert time.time() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=90) == STOPPED_EXIT, (folder.path / "out.log").read_text()
    (saved,) = folder.checkpoints.glob("checkpoint-*/complete")
    step = int(saved.parent.name.partition("-")[2])
    assert step in LOGGED[:-1]
    assert f"stopped as asked, after saving step {step}" in (folder.path / "out.log").read_text()
    assert not folder.is_held()
    rows = finish(lab, node, start(lab, node))
    assert [row["step"] for row in rows] == LOGGED
    expected = load_file(smoke.folder("pretrain").export / "model.safetensors")
    for name, value in weights(lab, node).items():
        assert torch.equal(value, expected[name]), name


def test_a_step_checkpoint_with_a_flipped_byte_is_named_and_trained_again(smoke: FinishedSweep, lab: Lab) -> None:
    node = pretraining(lab, smoke)
    kill_once_saved(lab, node, step=100)
    folder = lab.folder(node)
    newest = max(folder.checkpoints.glob("checkpoint-*/complete"), key=lambda mark: int(mark.parent.name.partition("-")[2])).parent
    optimizer = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(optimizer.read_bytes())
    data[len(data) // 2] ^= 1
    optimizer.write_bytes(data)
    rows = finish(lab, node, start(lab, node))
    said = (folder.path / "out.log").read_text()
    name = optimizer.relative_to(newest).as_posix()
    assert re.search(
        rf"warning: step checkpoint {newest.name} is unusable and removed: {re.escape(name)} has sha256 \w+, expected", said
    )
    assert [row["step"] for row in rows] == LOGGED
    expected = load_file(smoke.folder("pretrain").export / "model.safetensors")
    for name, value in weights(lab, node).items():
        assert torch.equal(value, expected[name]), name


def a_stage(place: Path) -> Stage:
    folder = place / "stages" / "pretrain" / "ce-s0-0123456789ab"
    folder.mkdir(parents=True)
    crash_points.OPERATIONS["commit"].prepare(folder)
    shutil.rmtree(folder / "checkpoints")
    return Stage(folder / "spec.json", Guard())


def arguments(stage: Stage, step: int) -> tuple[Any, Any, Any]:
    written = stage.folder.checkpoints / f"checkpoint-{step}"
    written.mkdir(parents=True, exist_ok=True)
    (written / "model.safetensors").write_bytes(b"weights")
    state = SimpleNamespace(global_step=step, max_steps=300, is_world_process_zero=True)
    return SimpleNamespace(output_dir=str(stage.folder.checkpoints)), state, SimpleNamespace(should_log=False, should_save=False)


def test_non_finite_weights_leave_no_checkpoint_to_resume_from(tmp_path: Path) -> None:
    stage, launch, model = a_stage(tmp_path), Launch(), torch.nn.Linear(2, 2)
    callback = StepCheckpoints(stage, launch)
    callback.on_save(*arguments(stage, 100), model=model)
    with torch.no_grad():
        model.weight[1, 0] = float("nan")
    with pytest.raises(DivergedError) as error:
        callback.on_save(*arguments(stage, 200), model=model)
    good = stage.folder.checkpoints / "checkpoint-100"
    assert "weight has non-finite values after step 200: training has diverged" in str(error.value)
    assert f"The last good checkpoint is {good}" in str(error.value)
    assert last_complete(stage.folder.checkpoints, launch, Ranks()) == good


def test_a_non_finite_loss_names_the_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    stage = a_stage(tmp_path)
    with pytest.raises(DivergedError, match=r"the loss is nan at step 25: .*No step checkpoint was written before"):
        stage.log(25, loss=float("nan"))
    for step in (50, 100):
        StepCheckpoints(stage, Launch()).on_save(*arguments(stage, step), model=torch.nn.Linear(2, 2))
    with pytest.raises(DivergedError, match=r"the loss is inf at step 125: .*The last good checkpoint is .*checkpoint-100"):
        stage.log(125, loss=float("inf"))
    assert not stage.folder.metrics.exists()


@pytest.mark.parametrize(
    ("log_steps", "seconds", "ends_at"),
    [
        (20, 0.01, 20),  # the next logged step comes soon
        (1000, 0.1, 8),  # it does not: the end of a rollout batch
    ],
)
def test_training_stops_where_it_can_resume_exactly(
    log_steps: int, seconds: float, ends_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, model = a_stage(tmp_path), torch.nn.Linear(2, 2)
    launch = Launch(log_steps=log_steps, save_steps=log_steps)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    callback = StepCheckpoints(stage, launch, every=4)
    with stage.guard.saving():
        for step in range(1, 100):
            now[0] += seconds
            if step == 5:
                stage.guard._handle(signal.SIGTERM, None)
            trainer, state, control = arguments(stage, step)
            callback.on_step_end(trainer, state, control)
            if control.should_save:
                assert control.should_log
                break
        assert step == ends_at
        with pytest.raises(Stopped, match=f"after saving step {step}"):
            callback.on_save(trainer, state, control, model=model)
    mark = json.loads((stage.folder.checkpoints / f"checkpoint-{step}" / "complete").read_text())
    assert mark["manifest"] == {"model.safetensors": manifest_of(stage.folder.checkpoints / f"checkpoint-{step}")["model.safetensors"]}


def test_a_resumed_stage_counts_what_it_took_until_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = a_stage(tmp_path)
    now[0] += 30
    StepCheckpoints(first, Launch()).on_save(*arguments(first, 100), model=torch.nn.Linear(2, 2))
    now[0] += 500  # lost
    again = Stage(first.folder.spec, Guard())
    again.earlier_seconds = seconds_until(first.folder.checkpoints / "checkpoint-100")
    now[0] += 7
    assert again.seconds == 37


def test_the_newest_two_are_kept_whatever_the_clock_says(tmp_path: Path) -> None:
    stage, model = a_stage(tmp_path), torch.nn.Linear(2, 2)
    callback = StepCheckpoints(stage, Launch())
    for step, written in ((9, 300), (10, 200), (100, 100)):
        trainer, state, control = arguments(stage, step)
        os.utime(stage.folder.checkpoints / f"checkpoint-{step}", (written, written))
        callback.on_save(trainer, state, control, model=model)
    assert sorted(path.name for path in stage.folder.checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-100"]


def test_a_resumed_run_saves_and_logs_as_often_as_it_is_told_now(smoke: FinishedSweep, lab: Lab) -> None:
    node = pretraining(lab, smoke, "pretrain.launch={save_steps: 100, log_steps: 50}")
    kill_once_saved(lab, node, step=100)
    told = smoke_graph("axes.prior=[ce]", "pretrain.launch={save_steps: 110, log_steps: 10}").cells[0].chain["pretrain"]
    assert told.fingerprint == node.fingerprint
    write_json_atomically(lab.folder(node).spec, told.spec(lab.home, "test"))
    kill_once_saved(lab, node, step=110)
    assert [row["step"] for row in rows(lab, node)][:3] == [50, 100, 110]


@pytest.mark.parametrize(
    ("seconds", "ends_at"),
    [
        (0.01, 80),  # the next logged step comes soon
        (0.3, 44),  # it does not, as both have known since they logged step 40: the end of a rollout batch
    ],
)
def test_processes_of_which_one_is_asked_to_stop_end_together(seconds: float, ends_at: int, tmp_path: Path) -> None:
    spawn(_train_and_stop_the_second, (seconds, tmp_path), nprocs=2)
    assert [(tmp_path / f"ended-{rank}").read_text() for rank in range(2)] == [str(ends_at)] * 2


def _train_and_stop_the_second(rank: int, seconds: float, place: Path) -> None:
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= here | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
    PartialState(cpu=True)
    stage, now = SimpleNamespace(guard=Guard()), [0.0]
    time.monotonic = lambda: now[0]
    callback = StepCheckpoints(stage, Launch(processes=2, log_steps=40, save_steps=40), every=4)  # type: ignore[arg-type]
    with stage.guard.saving():
        for step in range(1, 100):
            now[0] += seconds
            if (step, rank) == (41, 1):
                stage.guard._handle(signal.SIGTERM, None)
            control = SimpleNamespace(should_log=False, should_save=False)
            callback.on_step_end(SimpleNamespace(), SimpleNamespace(global_step=step, max_steps=300), control)
            if control.should_save:
                break
    (place / f"ended-{rank}").write_text(str(step))
    torch.distributed.barrier()  # one that leaves while the other still talks to it ends with an abort
    torch.distributed.destroy_process_group()
