"""The real command on a small sweep: results, no-op, resume after kills, one stage again, bad surroundings."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipeline.compare.results import COLUMNS
from pipeline.errors import NO_SPACE_EXIT
from pipeline.store.files import write_json_atomically
from pipeline.store.folders import Home, StageFolder
from stages.contract import _explain
from tests.conftest import FinishedSweep, Lab, smoke_graph


def sweep_folder(smoke: FinishedSweep) -> Path:
    return smoke.lab.home.sweep("smoke")


def test_the_end_is_a_table_and_the_path_of_the_report(smoke: FinishedSweep) -> None:
    lines = smoke.printed.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("setting "))
    assert "entropy" in lines[heading]
    assert "pass@8 before" in lines[heading]
    assert [line.split()[0] for line in lines[heading + 1 : heading + 3]] == ["ce", "tail"]
    assert re.search(r"[+-]\.\d{3} \[[+-]\.\d{3}, [+-]\.\d{3}\]", lines[heading + 1])
    report = Path(lines[-1].removeprefix("report: "))
    assert report.is_file()
    assert "Traceback" not in smoke.printed


def test_shared_stages_ran_once(smoke: FinishedSweep) -> None:
    kinds = [folder.path.parent.name for folder in smoke.lab.home.stages()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"corpus": 1, "pretrain": 2, "rl": 2, "evaluate": 4}
    assert all(len(list(folder.path.glob("attempts/*"))) == 1 for folder in smoke.lab.home.stages())


def test_results_have_one_row_per_cell_checkpoint_metric_and_k(smoke: FinishedSweep) -> None:
    with (sweep_folder(smoke) / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    keys = [(row["cell"], row["after"], row["metric"], row["k"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row["metric"] for row in rows} == {
        "pass@k", "pass^k", "avg@n", "cons@n", "greedy", "greedy_length", "length", "potential@k", "distinct_correct",
        "maj@k", "distinct_answers", "response_entropy",
        "perplexity", "cross_entropy", "entropy", "head_mass", "tail_mass", "seconds_per_step",
    }  # fmt: skip
    assert {row["k"] for row in rows if row["metric"] == "pass@k"} == {"1", "2", "4", "8"}
    assert {(row["after"], row["step"]) for row in rows} == {("pretrain", "300"), ("rl", "3")}
    record = smoke.folder("evaluate@rl").record()
    assert record is not None
    (row,) = [r for r in rows if (r["cell"], r["after"], r["metric"], r["k"]) == ("ce", "rl", "pass@k", "4")]
    assert float(row["value"]) == pytest.approx(record["metrics"]["pass@k/4"], rel=1e-4)


def test_samples_of_the_whole_sweep_are_one_table(smoke: FinishedSweep) -> None:
    table = pq.read_table(sweep_folder(smoke) / "samples.parquet")
    assert table.column_names == [
        "cell", "task", "after", "step", "problem_id", "sample", "greedy", "temperature", "text", "answer", "correct", "length",
        "truncated", "log_prob",
    ]  # fmt: skip
    assert len(table) == 2 * 2 * 12 * (8 + 1)
    assert table["sample"].null_count == table["greedy"].to_pylist().count(True) == 2 * 2 * 12


def test_the_report_is_one_self_contained_file(smoke: FinishedSweep) -> None:
    text = (sweep_folder(smoke) / "report.html").read_text()
    assert text.count("<svg") == 8
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text)  # nothing is loaded from elsewhere
    headings = (
        "Verdict",
        "Comparison",
        "Where RL ends, compared",
        "Who ends higher, along prior",
        "What RL gains",
        "maj@k before and after RL",
    )
    for heading in (*headings, "pass@k before and after RL", "RL dynamics", "Pre-training", "Sources"):
        assert re.search(f"<h2 id=[^>]*>{heading}</h2>", text)
    assert (sweep_folder(smoke) / "report.md").read_text().count("\n| ") == 3 + 2 + 2 + 3  # the comparison, levels, gains, and problems


def test_each_figure_is_also_a_file_that_the_markdown_shows(smoke: FinishedSweep) -> None:
    folder = sweep_folder(smoke)
    linked = re.findall(r"!\[.+\]\((figures/.+)\)", (folder / "report.md").read_text())
    assert len(linked) == 8
    assert {folder / name for name in linked} == set((folder / "figures").iterdir())
    for name in linked:
        figure = ElementTree.parse(folder / name)  # stands alone, unlike SVG inside of HTML
        assert figure.getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search("var\\(|currentColor", (folder / name).read_text())


def test_the_same_command_again_does_nothing(smoke: FinishedSweep) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.lab.home.path.rglob("*") if path.is_file() and path.name != "lock"}
    again = smoke.lab.call("sweep", "smoke")
    assert again.returncode == 0
    assert again.stdout.split("\nsweep smoke")[-1] == smoke.printed.split("\nsweep smoke")[-1]
    after = {path: path.stat().st_mtime_ns for path in smoke.lab.home.path.rglob("*") if path.is_file() and path.name != "lock"}
    assert before == after


def test_plan_and_status_speak_json(smoke: FinishedSweep) -> None:
    plan = json.loads(smoke.lab.call("plan", "smoke", "--json").stdout)
    assert {entry["state"] for entry in plan} == {"done"}
    more = json.loads(smoke.lab.call("plan", "smoke", "axes.seed=[0,1]", "--json").stdout)
    assert sorted(entry["state"] for entry in more) == ["done"] * 9 + ["new"] * 8
    status = json.loads(smoke.lab.call("status", "--json").stdout)
    assert {entry["state"] for entry in status} == {"done"}
    found = json.loads(smoke.lab.call("report", "smoke", "--json").stdout)
    assert [row["setting"] for row in found["rows"]] == ["ce", "tail"]
    for contrasts in (found["levels"], found["differences"]):
        assert [(one["setting"], one["metric"]) for one in contrasts] == [
            ("tail", at) for at in ("pass@1", "pass@8", "greedy", "cons@8")
        ]


@pytest.fixture(scope="module")
def killed(smoke: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, list[int], str]:
    """A sweep of its own, whose driver gets SIGKILL in the middle of pre-training; and what the same command then prints."""
    lab = Lab(Home(tmp_path_factory.mktemp("killed")))
    lab.borrow(smoke.lab, smoke.node("corpus"))
    command = ("sweep", "smoke", "axes.prior=[ce]", "rl=null")
    (plan,) = smoke_graph("axes.prior=[ce]", "rl=null").cells
    folder = lab.folder(plan.chain["pretrain"])
    driver = lab.start(*command)
    _wait_for(folder.checkpoints / "checkpoint-50" / "complete", driver)
    second = lab.call(*command)
    assert second.returncode == 2
    assert f"sweep 'smoke' is already run by process {driver.pid}" in second.stderr
    stage = json.loads(folder.status.read_text())["pid"]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    return lab, [stage], lab.call(*command).stdout


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.time() + 200
    while not path.exists():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.time() < deadline
        time.sleep(0.02)


def test_a_killed_driver_takes_its_stages_with_it(killed: tuple[Lab, list[int], str]) -> None:
    for pid in killed[1]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_after_a_kill_the_same_command_ends_with_the_same_weights(smoke: FinishedSweep, killed: tuple[Lab, list[int], str]) -> None:
    lab, _, printed = killed
    assert "report: " in printed
    (plan,) = smoke_graph("axes.prior=[ce]", "rl=null").cells
    folder = lab.folder(plan.chain["pretrain"])
    assert len(list(folder.path.glob("attempts/*"))) == 2
    found = load_file(folder.export / "model.safetensors")
    expected = load_file(smoke.folder("pretrain").export / "model.safetensors")
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].equal(expected[name]), name
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == list(range(25, 301, 25))


def test_one_stage_forced_again_takes_what_depends_on_it_along(killed: tuple[Lab, list[int], str]) -> None:
    lab, _, _ = killed
    (plan,) = smoke_graph("axes.prior=[ce]", "rl=null").cells
    pretrain, evaluate = lab.folder(plan.chain["pretrain"]), lab.folder(plan.evaluations["pretrain"])
    before = pretrain.record(), evaluate.record()
    done = lab.call("stage", plan.chain["pretrain"].fingerprint[:8], "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    after = pretrain.record(), evaluate.record()
    for old, new in zip(before, after, strict=True):
        assert old is not None
        assert new is not None
        assert new["provenance"]["started"] > old["provenance"]["started"]
        assert new["manifest"] == old["manifest"] or new["kind"] == "evaluate"  # training repeats itself exactly


def test_a_stage_takes_along_what_its_dependents_lack(smoke: FinishedSweep, lab: Lab) -> None:
    """Here the parent of its own that mid-training has, and with --force the parents that are gone."""
    text = "{use: countdown, documents: 300, heldout_documents: 50, block_size: 32}"
    own = f"midtrain={{use: countdown, corpus: {text}, steps: 10, optimizer: {{decay_steps: 5}}}}"
    (plan,) = smoke_graph("axes.prior=[ce]", "rl=null", own, "midtrain.launch.save_steps=5", "midtrain.launch.log_steps=5").cells
    lab.borrow(smoke.lab, smoke.node("corpus"))
    for node in plan.stages():
        folder = lab.folder(node)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json_atomically(folder.spec, node.spec(lab.home, "smoke"))
    done = lab.call("stage", plan.chain["pretrain"].fingerprint[:8])
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(lab.folder(node).record() is not None for node in plan.stages())

    shutil.rmtree(lab.folder(plan.chain["corpus"]).export)
    lab.folder(plan.chain["corpus"]).record_file.unlink()
    done = lab.call("stage", plan.chain["pretrain"].fingerprint[:8], "--force", "--alone")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_checkpoint_with_a_flipped_byte_is_refused_by_name(smoke: FinishedSweep, lab: Lab) -> None:
    lab.borrow(smoke.lab, smoke.node("corpus"), smoke.node("pretrain"))
    model = lab.folder(smoke.node("pretrain")).export / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    done = lab.call("sweep", "smoke", "axes.prior=[ce]", "rl=null")
    assert done.returncode == 1
    assert "model.safetensors has sha256" in done.stderr
    assert "priorlab stage" in done.stderr
    assert "--force" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_missing_parent_folder_is_rebuilt(smoke: FinishedSweep, lab: Lab) -> None:
    lab.borrow(smoke.lab, smoke.node("corpus"), smoke.node("pretrain"), smoke.node("evaluate@pretrain"))
    shutil.rmtree(lab.folder(smoke.node("corpus")).path)
    plan = json.loads(lab.call("plan", "smoke", "axes.prior=[ce]", "rl=null", "--json").stdout)
    assert [entry["state"] for entry in plan] == ["new", "done", "done"]
    done = lab.call("sweep", "smoke", "axes.prior=[ce]", "rl=null")
    assert done.returncode == 0, done.stderr
    rebuilt, original = (at.folder(smoke.node("corpus")).record() for at in (lab, smoke.lab))
    assert rebuilt is not None
    assert original is not None
    assert rebuilt["metrics"] == original["metrics"]


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_full_disk_ends_with_a_message_and_leaves_no_record(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=300k"):
        lab = Lab(Home(tmp_path / "small"))
        done = lab.call("sweep", "smoke", "axes.prior=[ce]", "rl=null", "tracking.mode=disabled")
        assert done.returncode == 1, done.stdout
        assert "no space left on the disk" in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert all(StageFolder(folder.path).record() is None for folder in lab.home.stages())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_disk_that_torch_fills_is_recognised(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=300k"):
        with pytest.raises(RuntimeError) as full:
            torch.save(torch.zeros(10**6), tmp_path / "small" / "scheduler.pt")
        assert _explain(full.value)[1] == NO_SPACE_EXIT


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_read_only_home_is_named_and_can_be_looked_at(tmp_path: Path) -> None:
    with mounted(tmp_path / "read-only", "size=300k,ro"):
        lab = Lab(Home(tmp_path / "read-only"))
        done = lab.call("sweep", "smoke")
        assert done.returncode == 2
        assert re.fullmatch(r"error: Read-only file system \(.*\)\n", done.stderr)
        assert {entry["state"] for entry in json.loads(lab.call("plan", "smoke", "--json").stdout)} == {"new"}
        assert lab.call("status").returncode == 0


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    done = Lab(Home(occupied / "home")).call("sweep", "smoke")
    assert done.returncode == 2
    assert "error: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep", "smok"), "did you mean 'smoke'?"),
        (("sweep", "smoke", "prior.bta=1"), "did you mean 'beta'?"),
        (("resume", "nothing"), "no stage 'nothing'"),
        (("stage", "ffff"), "no stage 'ffff'"),
        (("report", "nothing"), "no sweep 'nothing'"),
        (("sweep", "smoke", "--name", "../escape"), "cannot name a sweep"),
    ],
)
def test_bad_commands_get_one_clear_line(lab: Lab, arguments: tuple[str, ...], message: str) -> None:
    done = lab.call(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not lab.home.path.exists()


def test_ctrl_c_stops_in_order_and_the_same_command_goes_on(smoke: FinishedSweep, lab: Lab) -> None:
    lab.borrow(smoke.lab, smoke.node("corpus"))
    driver = lab.start("sweep", "smoke", "axes.prior=[ce]", "rl=null", "pretrain.launch.save_steps=300")
    folder = lab.folder(smoke.node("pretrain"))
    _wait_for(folder.metrics, driver)
    driver.send_signal(signal.SIGINT)
    printed, _ = driver.communicate(timeout=90)
    assert driver.returncode == 130
    assert "stopping: training stages save a step checkpoint first; Ctrl-C again kills" in printed
    assert len(list(folder.checkpoints.glob("*/complete"))) == 1
    assert "`priorlab resume smoke` continues where it stopped" in printed
    lock = folder.lock()
    assert lock is not None  # nobody holds it: no orphan
    os.close(lock)
    state = json.loads(lab.call("status", "smoke", "--json").stdout)
    assert [entry["state"] for entry in state] == ["done", "unfinished", "new"]
    # Resuming the one stage takes its evaluation along, though that was never started.
    resumed = lab.call("resume", folder.path.name)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    state = json.loads(lab.call("status", "smoke", "--json").stdout)
    assert [entry["state"] for entry in state] == ["done", "done", "done"]


def survivors(lab: Lab) -> list[str]:
    """Command lines of the processes that inherited this home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"PRIORLAB_HOME={lab.home.path}\0".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if line]  # a zombie has none


def test_no_engine_verifier_or_wandb_process_survives_rl(smoke: FinishedSweep, lab: Lab) -> None:
    """Driver and stage killed at once, so that neither can tidy up; then Ctrl-C, after which RL goes on from where it saved."""
    lab.borrow(smoke.lab, *(smoke.node(role) for role in ("corpus", "pretrain", "evaluate@pretrain")))
    command = ("sweep", "smoke", "axes.prior=[ce]", "rl.steps=400", "rl.launch.save_steps=400")
    folder = lab.folder(smoke_graph(*command[2:]).cells[0].chain["rl"])

    def begun() -> subprocess.Popen[str]:
        driver = lab.start(*command)
        _wait_for(folder.metrics, driver)
        assert len(survivors(lab)) >= 4, survivors(lab)  # driver, stage, verifier, W&B's
        return driver

    def gone() -> bool:
        deadline = time.time() + 30
        while survivors(lab) and time.time() < deadline:
            time.sleep(0.1)
        return not survivors(lab)

    driver = begun()
    driver.send_signal(signal.SIGSTOP)
    os.kill(json.loads(folder.status.read_text())["pid"], signal.SIGKILL)
    driver.kill()
    driver.communicate()
    assert gone(), survivors(lab)
    folder.metrics.unlink()

    driver = begun()
    driver.send_signal(signal.SIGINT)
    printed, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, printed
    assert gone(), survivors(lab)
    (saved,) = folder.checkpoints.glob("*/complete")
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert steps == list(range(1, int(saved.parent.name.partition("-")[2]) + 1))


def test_stages_side_by_side_get_gpus_of_their_own(smoke: FinishedSweep, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    lab.borrow(smoke.lab, smoke.node("corpus"))
    driver = lab.start("sweep", "smoke", "rl=null")
    folders = [lab.folder(smoke.node("pretrain", cell)) for cell in (0, 1)]
    for folder in folders:
        _wait_for(folder.status, driver)
    seen = []
    for folder in folders:
        devices = json.loads((folder.path / "attempts" / "0001" / "attempt.json").read_text())["devices"]
        process = json.loads(folder.status.read_text())["pid"]
        assert f"\0CUDA_VISIBLE_DEVICES={','.join(devices)}\0" in f"\0{Path(f'/proc/{process}/environ').read_text()}"
        seen += devices
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert sorted(seen) == ["3", "5"]


def test_a_stage_that_needs_more_gpus_than_there_are_says_so(smoke: FinishedSweep, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    lab.borrow(smoke.lab, smoke.node("corpus"))
    done = lab.call("sweep", "smoke", "axes.prior=[ce]", "rl=null", "pretrain.launch.processes=2")
    assert done.returncode == 1
    assert "needs 2 GPUs, but this machine shows 1" in done.stderr


def test_a_diverged_run_stops_with_the_step(smoke: FinishedSweep, lab: Lab) -> None:
    lab.borrow(smoke.lab, smoke.node("corpus"))
    done = lab.call(
        "sweep", "smoke", "axes.prior=[ce]", "rl=null", "pretrain.optimizer.learning_rate=1e30",
        "pretrain.optimizer.clip_norm=1e30", "pretrain.optimizer.warmup_steps=0",
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"the loss is nan at step \d+: training has diverged", done.stderr)
