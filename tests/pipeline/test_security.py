"""What comes from outside (configs, checkpoints, samples) is data: it runs nothing, leaves the home, or shows as anything but text."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe, load_sweep
from pipeline.experiment.graph import build_graph
from pipeline.store.files import manifest_of, write_json_atomically
from pipeline.store.folders import Home
from tests.conftest import SECRETS, FinishedSweep, Lab
from tests.pipeline.test_adopt import SMALL, checkpoint, tokenizer
from tests.unit.stores import Shelf, shelf_at


def test_no_file_of_a_whole_sweep_holds_a_secret_of_the_environment(smoke: FinishedSweep) -> None:
    """Specs, records, logs, attempts (with the arguments of processes), metrics, W&B's files, and the report."""
    planted = [value.encode() for value in SECRETS.values()]
    files = [path for path in smoke.lab.home.path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.name == "attempt.json" for path in files)
    for path in files:
        data = path.read_bytes()
        assert not any(secret in data for secret in planted), path
    assert not any(value in smoke.printed for value in SECRETS.values())


def test_the_arguments_of_running_processes_hold_no_secret(lab: Lab) -> None:
    driver = lab.start("sweep", "smoke", "axes.prior=[ce]", "rl=null", "corpus.documents=100000000")
    folder = next(iter(build_graph(load_sweep("smoke", ["corpus.documents=100000000"]).cells()).stages.values())).folder(lab.home)
    try:
        while not folder.status.exists():
            assert driver.poll() is None
        seen = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"PRIORLAB_HOME={lab.home.path}\0".encode() in (process / "environ").read_bytes()
                arguments = (process / "cmdline").read_bytes()
            except OSError:
                continue
            seen += mine
            assert not any(secret.encode() in arguments for secret in SECRETS.values())
        assert seen >= 2
    finally:
        driver.terminate()
        driver.communicate(timeout=60)


@pytest.mark.parametrize("name", ["../../escape", "/tmp/escape", "a/b", "..", ".hidden", "", "x\ny", "x" * 65])
def test_no_name_of_a_sweep_leads_out_of_the_home(name: str, tmp_path: Path) -> None:
    with pytest.raises(PriorlabError, match="cannot name a sweep"):
        Home(tmp_path / "home").sweep(name)
    with pytest.raises(PriorlabError, match=r"cannot name a sweep|give the name"):
        load_sweep("smoke", rename=name) if name else load_sweep("")
    shelf = Shelf(Home(tmp_path / "home"))
    (tmp_path / "escape").mkdir()
    (tmp_path / "escape" / "sweep.yaml").write_text("recipe: smoke")
    for command in ("report", "resume", "cancel", "status"):
        assert shelf.refusal(command, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["escape"]


@pytest.mark.parametrize("name", ["../../../escape", "/etc/passwd", "..", "a\0b", "\x1b[31mred", "<b>", "$(touch escaped)"])
def test_no_name_of_a_prior_or_a_task_leads_out_of_the_home(name: str, tmp_path: Path) -> None:
    (cell,) = load_recipe("smoke").cells()
    renamed = cell.recipe.model_copy(
        update={
            "prior": cell.recipe.prior.model_copy(update={"name": name}),
            "task": cell.recipe.task.model_copy(update={"name": name}),
        }
    )
    home = Home(tmp_path / "home")
    graph = build_graph([type(cell)(cell.id, cell.coordinates, renamed)])
    for node in graph.stages.values():
        place = node.folder(home).path
        assert place.resolve().parent == home.path / "stages" / node.kind
        assert place.name.isascii()
        assert place.name.isprintable()


@pytest.mark.parametrize(
    "override",
    [
        r'cluster.options={comment: "x\nrm -rf ~"}',
        r'cluster.partition="gpu\ncurl evil"',
        r'cluster.pretrain.options={"wrap=x\n": 1}',
    ],
)
def test_no_config_adds_a_line_to_a_jobs_script(override: str) -> None:
    with pytest.raises(PriorlabError, match=r"cluster\."):
        list(load_recipe("smoke", ["cluster=slurm", override]).cells())


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def armed(folder: Path, mark: Path) -> Path:
    """A checkpoint that asks for its own code, and has pickles beside its weights."""
    checkpoint(folder, tokenizer())
    classes = "Qwen3Config as C, Qwen3ForCausalLM as M, PreTrainedTokenizerFast as T"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nfrom transformers import {classes}\n")
    for name, wanted in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", "evil.T"]}),
    ):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(said | {"auto_map": wanted}))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    return folder


def test_an_adopted_checkpoint_runs_no_code_of_its_own(lab: Lab, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    done = lab.call("adopt", str(armed(tmp_path / "theirs", mark)), "--as", "smoke", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = lab.call(*done.stdout.splitlines()[-1].removeprefix("continue with: priorlab ").split(), "rl=null")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not mark.exists()
    kept = [path.name for path in lab.home.path.glob("stages/pretrain/*/export/*")]
    assert not {"evil.py", "pytorch_model.bin", "training_args.bin", "optimizer.pt"} & set(kept)


def test_a_checkpoint_whose_model_only_its_own_code_knows_is_refused(lab: Lab, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    source = armed(tmp_path / "theirs", mark)
    said = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(said | {"model_type": "evil", "architectures": ["Evil"]}))
    done = lab.call("adopt", str(source), "--as", "smoke", *SMALL)
    assert done.returncode == 2
    assert "was not adopted" in done.stderr
    assert not mark.exists()


def test_weights_that_lie_elsewhere_or_are_pickles_are_refused(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    for part in ("../outside.safetensors", "pytorch_model.bin"):
        source = checkpoint(tmp_path / "theirs", tokenizer())
        (source / "pytorch_model.bin").write_bytes(b"pickle")
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": part}}))
        assert "names files that are not .safetensors beside it" in shelf.refusal("adopt", str(source), "--as", "smoke")
        shutil.rmtree(source)


SCRIPT = "</code><script>document.title = 'pwned'</script><img src=x onerror=\"document.title = 'pwned'\">"


def hostile_report(shelf: Shelf) -> Path:
    """A finished sweep whose prior, problems and samples are HTML."""
    graph = shelf.sweep("axes.prior=[ce]", f"prior.name={json.dumps('x' + SCRIPT)}", f"name={json.dumps(SCRIPT)}", "rl=null")
    for node in graph.stages.values():
        folder = shelf.begun(node)
        folder.export.mkdir()
        if node.kind == "evaluate":
            sample = {
                "problem_id": [SCRIPT],
                "sample": pa.array([-1], pa.int32()),
                "text": [SCRIPT],
                "answer": [SCRIPT],
                "correct": [True],
            }
            sample |= {"length": pa.array([1], pa.int32()), "truncated": [False]}
            pq.write_table(pa.table(sample), folder.export / "samples.parquet")
            one = {"8": [0.5, 0.25]}
            metrics = {"pass@k": {"1": [0.5, 0.25]}, "avg@n": one, "cons@n": one, "greedy": {"1": [1.0, 0.0]}, "length": one}
            heldout = {name: [0.5, 0.6] for name in ("cross_entropy", "entropy", "head_mass", "tail_mass")}
            write_json_atomically(folder.export / "problems.json", {"problems": [SCRIPT, "q"], "metrics": metrics, "heldout": heldout})
        row = {"step": 1, "tokens": 1, "perplexity": 2.0, "entropy": 1.0, "tail_mass": 0.1}
        folder.metrics.write_text("".join(json.dumps(row | {"tokens": tokens}) + "\n" for tokens in range(1, 11)))
        record = {
            "kind": node.kind, "fingerprint": node.fingerprint, "recipe_version": 1, "identity": node.config.identity(), "parents": {},
            "manifest": manifest_of(folder.export), "metrics": {},
            "provenance": {"started": 1.0, "seconds": 1.0, "commit": SCRIPT, "packages": {SCRIPT: SCRIPT}},
        }  # fmt: skip
        write_json_atomically(folder.record_file, record)
    done = shelf.call("report", "smoke")
    assert done.exit_code == 0, done.output
    return shelf.home.sweep("smoke") / "report.html"


def test_a_script_in_samples_and_names_shows_as_text_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    report = hostile_report(shelf_at(tmp_path))
    assert report.read_text().count("<script") == 1  # its own, the only one that its policy lets run
    assert "<script" not in report.with_name("report.md").read_text()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

    def page(path: Path) -> str:
        command = [
            browser,
            *quiet,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            path.as_uri(),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout

    unsafe = tmp_path / "unsafe.html"
    unsafe.write_text(f"<title>unsafe</title>{SCRIPT}")
    assert "<title>pwned</title>" in page(unsafe)  # the browser does run such text where it is no text
    shown = page(report)
    assert "<title>smoke - priorlab</title>" in shown
    assert "&lt;script&gt;document.title = 'pwned'&lt;/script&gt;" in shown
    assert shown.count("<script") == 1
    assert "<img" not in shown
