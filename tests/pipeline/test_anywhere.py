"""Commands work in any folder and under any PYTHONPATH: names that stand there replace no package, and relative paths start there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.home import doctor
from pipeline.run.launch import Nodes, launch_command, process_environment
from pipeline.store.folders import StageFolder
from tests.conftest import Lab

NAMES = ("pipeline", "stages", "datasets", "torch", "wandb", "vllm", "trl", "pebble", "tokenizers", "yaml", "click", "tests")
TINY = ("smoke", "axes.prior=[ce]", "rl=null", "pretrain.steps=60", "evaluate.problems=2")
VERIFY = """
import multiprocessing
from functools import partial
from pipeline.config.evaluation import Verification
from pipeline.config.tasks import CountdownTask
from stages.tasks import build_task
from stages.tasks.verifier import Verifier
if __name__ == "__main__":
    task = CountdownTask(name="countdown")
    (problem,) = build_task(task).problems("evaluate", 1, 0)
    with Verifier(partial(build_task, task), Verification()) as verifier:
        print(verifier.verify([(problem, "1+1=2")]))
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, on the caller's PYTHONPATH, with packages called like ours and libraries'; none may be imported."""
    place, imported = tmp_path / "theirs", tmp_path / "imported"
    for name in NAMES:
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text(f"open({str(imported)!r}, 'a').write('{name} ')\nraise ImportError\n")
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(place))
    yield place
    assert not imported.exists(), imported.read_text()


def test_a_whole_sweep_runs_beside_such_names_and_finds_a_relative_path(hostile: Path, lab: Lab) -> None:
    """With stages forked from a server and started cold, and the workers of the verifier."""
    (hostile / "texts").mkdir()
    (hostile / "texts" / "a.txt").write_text("\n\n".join(f"Line {number} says 1 + 2 = 3." for number in range(4000)))
    (hostile / "configs" / "corpus").mkdir(parents=True)
    (hostile / "configs" / "corpus" / "mine.yaml").write_text(
        'sources: {mine: {kind: files, paths: [texts/*.txt], separator: " says "}, sums: {kind: task}}\n'
        "tokens: 40000\nheldout_tokens: 1000\nblock_size: 32\n"
    )
    recipe = ("corpus=mine", "corpus.documents=null", "corpus.heldout_documents=null")
    done = subprocess.run(
        [sys.executable, "-E", "-P", "-m", "pipeline.cli", "sweep", *TINY, *recipe],
        env=lab.environment(), cwd=hostile, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [folder.name for folder in lab.home.stages() if folder.record() is None] == []


def test_workers_of_the_verifier_import_what_their_stage_does(hostile: Path) -> None:
    (hostile.parent / "verify.py").write_text(VERIFY)
    seen = process_environment(1, None, "test", hub=False)
    done = subprocess.run([sys.executable, str(hostile.parent / "verify.py")], env=seen, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Verdict(correct=False" in done.stdout


def test_several_processes_of_a_stage_import_its_packages(hostile: Path) -> None:
    start = launch_command("pretrain", StageFolder(hostile / "nothing"), 2, Nodes())
    done = subprocess.run(start, env=process_environment(1, None, "test", hub=False), capture_output=True, text=True)
    assert "is not a stage spec" in done.stderr  # said by the stage itself


def test_doctor_finds_the_torch_of_the_installation(hostile: Path) -> None:
    assert doctor._devices().ok
