"""`cluster=slurm` on a real Slurm with two nodes: chains, adoption, requeueing, cancelling, throttling, and a stage over two nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.config.stages import KINDS
from pipeline.run.slurm.queue import SlurmJob, all_jobs, cancel, job_of, submitted_by
from pipeline.store.folders import Home, StageFolder, status_of
from tests.conftest import Lab, rows, smoke_graph
from tests.pipeline import slurm_cluster

SMALL = [f"cluster.{kind}={{gpus_per_process: 0, cpus_per_process: 1, memory_gib: null, minutes: 5}}" for kind in KINDS]
QUICK = ("axes.prior=[ce]", "rl=null", "cluster=slurm", "cluster.poll_seconds=1", "cluster.warning_seconds=10", *SMALL)
SWEEP = ("sweep", "smoke", *QUICK)
(CELL,) = smoke_graph("axes.prior=[ce]", "rl=null").cells
CORPUS, PRETRAIN, EVALUATE = CELL.chain["corpus"], CELL.chain["pretrain"], CELL.evaluations["pretrain"]


_CREDENTIAL_SECONDS = 5
"""A job started again at once fails: the nodes have just revoked its credentials. Slurm's own two minutes are there for that."""


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.running():
        yield


@pytest.fixture(autouse=True)
def _no_job_stays(slurm: None) -> Iterator[None]:
    yield
    cancel(job.id for job in all_jobs().values() if job.live)
    wait_for(lambda: not any(job.live for job in all_jobs().values()), "the last jobs to end")


def wait_for(condition: Callable[[], object], what: str, driver: subprocess.Popen[str] | None = None) -> None:
    deadline = time.time() + 120
    while not condition():
        assert time.time() < deadline, f"waited two minutes for {what}: {all_jobs()}"
        assert driver is None or driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        time.sleep(0.1)


def job(folder: StageFolder) -> SlurmJob:
    found = job_of(folder, all_jobs())
    assert found is not None
    return found


def start_again(folder: StageFolder) -> None:
    """Wait for a requeued job to stand in the queue, and spare it the two minutes that Slurm lets requeued jobs wait."""
    before = len(attempts(folder))
    wait_for(lambda: job(folder).state == "PENDING", "the requeued job")
    time.sleep(_CREDENTIAL_SECONDS)
    subprocess.run(["scontrol", "update", f"JobId={job(folder).id}", "StartTime=now"], check=True)
    wait_for(lambda: len(attempts(folder)) > before, "the next attempt")


def attempts(folder: StageFolder) -> list[Path]:
    return sorted(folder.path.glob("attempts/*"))


def states(lab: Lab) -> dict[str, str]:
    return {entry["stage"].partition("/")[0]: entry["state"] for entry in json.loads(lab.call("status", "smoke", "--json").stdout)}


@pytest.fixture(scope="module")
def finished(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, dict[str, object]]:
    """A sweep that was submitted, left with Ctrl-C, and picked up by the same command; and what was seen on the way."""
    lab = Lab(Home(tmp_path_factory.mktemp("slurm")))
    pretrain, evaluate = lab.folder(PRETRAIN), lab.folder(EVALUATE)
    driver = lab.start(*SWEEP)
    wait_for((evaluate.path / "job.json").exists, "submission", driver)
    wait_for(lambda: job(lab.folder(CORPUS)).state == "RUNNING", "the first job", driver)
    driver.send_signal(signal.SIGINT)
    printed, _ = driver.communicate(timeout=30)
    seen: dict[str, object] = {"code": driver.returncode, "left": printed, "states": states(lab)}
    seen["plan"] = [entry["state"] for entry in json.loads(lab.call("plan", *SWEEP[1:], "--json").stdout)]
    seen["jobs"] = [job(folder).id for folder in (pretrain, evaluate)]
    again = lab.call(*SWEEP)
    assert again.returncode == 0, again.stdout + again.stderr
    seen["again"] = again.stdout
    seen["jobs again"] = [job(folder).id for folder in (pretrain, evaluate)]
    return lab, seen


def test_the_submitting_process_may_leave_and_the_jobs_go_on(finished: tuple[Lab, dict[str, object]]) -> None:
    _, seen = finished
    assert seen["code"] == 130
    assert "3 jobs continue in Slurm; `priorlab resume smoke` waits for them again" in str(seen["left"])
    assert seen["states"] == {"corpus": "running", "pretrain": "queued", "evaluate": "queued"}
    assert seen["plan"] == ["running", "queued", "queued"]


def test_the_same_command_follows_the_jobs_that_are_there(finished: tuple[Lab, dict[str, object]]) -> None:
    lab, seen = finished
    assert seen["jobs"] == seen["jobs again"]
    assert "report: " in str(seen["again"])
    assert states(lab) == {"corpus": "done", "pretrain": "done", "evaluate": "done"}
    assert all(len(attempts(lab.folder(node))) == 1 for node in (CORPUS, PRETRAIN, EVALUATE))


def test_jobs_are_chained_by_afterok(finished: tuple[Lab, dict[str, object]]) -> None:
    lab, _ = finished
    parent = job(lab.folder(PRETRAIN)).id
    (script,) = lab.folder(EVALUATE).path.glob("slurm/*_submission.sh")
    assert f"--dependency=afterok:{parent}" in script.read_text().replace("'", "")


def test_a_stage_requeued_in_the_middle_ends_as_if_it_had_not_been(finished: tuple[Lab, dict[str, object]], lab: Lab) -> None:
    whole, _ = finished
    lab.borrow(whole, CORPUS)
    folder = lab.folder(PRETRAIN)
    driver = lab.start(*SWEEP)
    try:
        wait_for((folder.checkpoints / "checkpoint-50" / "complete").exists, "a checkpoint", driver)
        # What Slurm sends before the time limit: submitit's hook requeues.
        subprocess.run(["scancel", "--signal=USR2", job(folder).id], check=True)
        start_again(folder)
        wait_for((folder.checkpoints / "checkpoint-150" / "complete").exists, "a later checkpoint", driver)
        # What an administrator does, and preemption: Slurm requeues.
        subprocess.run(["scontrol", "requeue", job(folder).id], check=True)
        start_again(folder)
        wait_for(folder.record_file.exists, "the end of pre-training", driver)
        wait_for(lambda: job(lab.folder(EVALUATE)).state == "RUNNING", "what depends on it", driver)
    finally:
        driver.kill()
        driver.communicate()
    assert len(attempts(folder)) == 3
    found, expected = (load_file(at.folder(PRETRAIN).export / "model.safetensors") for at in (lab, whole))
    assert all(found[name].equal(expected[name]) for name in expected)
    assert [row["step"] for row in rows(lab, PRETRAIN)] == list(range(25, 301, 25))
    assert [row["loss"] for row in rows(lab, PRETRAIN)] == [row["loss"] for row in rows(whole, PRETRAIN)]


def test_ctrl_c_cancels_the_jobs_when_told_to(finished: tuple[Lab, dict[str, object]], lab: Lab) -> None:
    lab.borrow(finished[0], CORPUS)
    driver = lab.start(*SWEEP, "cluster.on_interrupt=cancel")
    folder = lab.folder(PRETRAIN)
    wait_for(lambda: status_of(folder).get("state") == "running", "pre-training", driver)
    driver.send_signal(signal.SIGINT)
    printed, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, printed
    assert "`priorlab resume smoke` continues where it stopped" in printed
    assert [job(lab.folder(node)).state for node in (PRETRAIN, EVALUATE)] == ["CANCELLED", "CANCELLED"]
    assert states(lab) == {"corpus": "done", "pretrain": "unfinished", "evaluate": "unfinished"}


def test_what_depends_on_a_failed_stage_is_cancelled_and_reported_as_blocked(finished: tuple[Lab, dict[str, object]], lab: Lab) -> None:
    lab.borrow(finished[0], CORPUS)
    diverging = ("pretrain.optimizer.learning_rate=1e30", "pretrain.optimizer.clip_norm=1e30", "pretrain.optimizer.warmup_steps=0")
    done = lab.call(*SWEEP, *diverging)
    assert done.returncode == 1
    assert "training has diverged" in done.stderr
    assert "blocked by failed or cancelled stages: 1 more" in done.stderr
    assert not any(job.live for job in all_jobs().values())


def test_a_job_that_another_one_preempts_is_submitted_again_with_what_depends_on_it(
    finished: tuple[Lab, dict[str, object]], lab: Lab
) -> None:
    whole, _ = finished
    lab.borrow(whole, CORPUS)
    folder = lab.folder(PRETRAIN)
    driver = lab.start(*SWEEP, "cluster.retries.first_delay_seconds=1")
    try:
        wait_for((folder.checkpoints / "checkpoint-50" / "complete").exists, "a checkpoint", driver)
        before = [job(lab.folder(node)).id for node in (PRETRAIN, EVALUATE)]
        subprocess.run(["sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"], check=True)
        wait_for(lambda: all_jobs()[before[0]].state == "PREEMPTED", "preemption", driver)
        wait_for(folder.record_file.exists, "the end of pre-training", driver)
        wait_for(lambda: job(lab.folder(EVALUATE)).state == "RUNNING", "what depends on it", driver)
        assert not {job(lab.folder(node)).id for node in (PRETRAIN, EVALUATE)} & set(before)
    finally:
        driver.kill()
        printed, _ = driver.communicate()
    assert "preempted: again in 1 s (retry 1 of 5)" in printed
    assert len(attempts(folder)) == 2
    found, expected = (load_file(at.folder(PRETRAIN).export / "model.safetensors") for at in (lab, whole))
    assert all(found[name].equal(expected[name]) for name in expected)


def test_two_sweeps_that_watch_a_preempted_stage_make_one_new_job_of_it(finished: tuple[Lab, dict[str, object]], lab: Lab) -> None:
    """And cancelling one of them leaves the jobs that the other submitted."""
    lab.borrow(finished[0], CORPUS)
    long = "pretrain.steps=100000"  # it must not end meanwhile, however busy the machine
    (plan,) = smoke_graph("axes.prior=[ce]", "rl=null", long).cells
    folder, evaluate = lab.folder(plan.chain["pretrain"]), lab.folder(plan.evaluations["pretrain"])
    drivers = [lab.start(*SWEEP, long, "--name", name, "cluster.retries.first_delay_seconds=1") for name in ("one", "two")]
    try:
        wait_for((folder.checkpoints / "checkpoint-50" / "complete").exists, "a checkpoint")
        (first,) = jobs_named(folder)
        subprocess.run(["sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"], check=True)
        wait_for(lambda: len(jobs_named(folder)) > 1 and job(folder).state == "RUNNING", "the new job")
        wait_for(lambda: job(evaluate).live and not job(evaluate).doomed, "what depends on it")
        time.sleep(3)  # each has looked again
        assert len(jobs_named(folder)) == 2
        (owner,) = {submitted_by(stage) for stage in (folder, evaluate)}
        other = {"one": "two", "two": "one"}[owner or ""]
        printed = lab.call("cancel", other).stdout
        assert printed.count(f"running: sweep {owner} runs it") == 2, printed
        assert job(folder).state == "RUNNING"
    finally:
        for driver in drivers:
            driver.kill()
            driver.communicate()
    assert first != job(folder).id


def jobs_named(folder: StageFolder) -> list[str]:
    """Every job that there was of a stage."""
    return [one.id for one in all_jobs().values() if one.name == job(folder).name]


def test_max_jobs_holds_without_anybody_watching(finished: tuple[Lab, dict[str, object]], lab: Lab) -> None:
    lab.borrow(finished[0], CORPUS)
    done = lab.call(*SWEEP, "axes.prior=[ce, tail]", "cluster.max_jobs=1", "cluster.wait=false")
    assert done.returncode == 0, done.stderr
    assert "4 jobs continue in Slurm" in done.stdout
    wait_for(lambda: any(job.state == "RUNNING" for job in all_jobs().values()), "the first job")
    for _ in range(10):
        assert sum(job.state == "RUNNING" for job in all_jobs().values()) <= 1
        time.sleep(0.2)
    listed = subprocess.run(["squeue", "--me", "-h", "-o", "%i %E"], capture_output=True, text=True, check=True).stdout
    first, *others = [line.split() for line in sorted(listed.splitlines())]
    assert first[1] == "(null)"
    assert all("after" in dependency for _, dependency in others)
    assert len(lab.call("cancel", "smoke").stdout.splitlines()) == 4
    wait_for(lambda: not any(job.live for job in all_jobs().values()), "the jobs to end")


def test_what_the_queue_has_no_room_for_is_submitted_as_other_jobs_end(
    finished: tuple[Lab, dict[str, object]], lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of two jobs, as sites set it per user. It needs Slurm's accounting, so here sbatch keeps it, in Slurm's own words."""
    lab.borrow(finished[0], CORPUS)
    refusal = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    limited = tmp_path / "bin" / "sbatch"
    limited.parent.mkdir()
    limited.write_text(
        "#!/bin/sh\n"
        'if [ "$(squeue --me --noheader --states=PENDING,RUNNING,COMPLETING | wc -l)" -ge 2 ]; then\n'
        "  echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2\n"
        f'  echo "sbatch: error: Batch job submission failed: {refusal}" >&2\n'
        "  exit 1\n"
        "fi\n"
        f'exec {shutil.which("sbatch")} "$@"\n',
        encoding="utf-8",
    )
    limited.chmod(0o755)
    monkeypatch.setenv("PATH", f"{limited.parent}:{os.environ['PATH']}")
    done = lab.call(*SWEEP, "axes.prior=[ce, tail]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Slurm accepts no more of your jobs for now") == 1
    assert "refused" not in done.stdout


def test_a_stage_over_two_nodes_trains_with_deepspeed(finished: tuple[Lab, dict[str, object]], lab: Lab) -> None:
    whole, _ = finished
    lab.borrow(whole, CORPUS)
    spread = ("pretrain.steps=75", "pretrain.launch.processes=2", "pretrain.launch.zero_stage=2", "cluster.pretrain.nodes=2")
    (plan,) = smoke_graph("axes.prior=[ce]", "rl=null", *spread[:1]).cells
    pretrain = plan.chain["pretrain"]
    driver = lab.start(*SWEEP, *spread)
    try:
        wait_for(lab.folder(pretrain).record_file.exists, "pre-training", driver)
    finally:
        driver.kill()
        driver.communicate()
    record = lab.folder(pretrain).record()
    assert record is not None
    assert (record["metrics"]["processes"], record["metrics"]["zero_stage"]) == (2, 2)
    (attempt,) = attempts(lab.folder(pretrain))
    assert json.loads((attempt / "attempt.json").read_text())["nodes"] == "n[1-2]"
    assert rows(lab, pretrain)[0]["loss"] == pytest.approx(rows(whole, PRETRAIN)[0]["loss"], rel=1e-4)


def test_a_job_takes_no_name_of_the_folder_it_was_submitted_in_and_nothing_of_a_job_around_it(lab: Lab, tmp_path: Path) -> None:
    for name in ("pipeline", "stages", "submitit", "cloudpickle"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "__init__.py").touch()
    around = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "5", "SLURM_MEM_PER_CPU": "10", "SLURM_MEM_PER_NODE": "20", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        lab.command(*SWEEP), env=lab.environment() | around, cwd=tmp_path / "work", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(lab) == {"corpus": "done", "pretrain": "done", "evaluate": "done"}
