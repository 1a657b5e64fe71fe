"""`adopt`: a real checkpoint made outside goes in, and evaluation and RL go on from it; what does not fit is refused by name."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.config.model import ModelConfig
from pipeline.experiment.compose import load_recipe
from pipeline.store.files import manifest_of
from pipeline.store.folders import Home
from stages.corpus.tokenizer import character_tokenizer
from stages.pretrain.model import build_model
from stages.tasks import build_task
from tests.conftest import FinishedSweep, Lab

SMALL = (
    "corpus.documents=200", "corpus.heldout_documents=30", "evaluate.problems=2", "evaluate.samples=2", "evaluate.heldout_blocks=2",
    "rl.steps=1", "rl.problems=4", "prior.name=theirs",
)  # fmt: skip


def tokenizer(extra: str = "") -> PreTrainedTokenizerFast:
    (cell,) = load_recipe("smoke").cells()
    return character_tokenizer(build_task(cell.recipe.task).alphabet + extra)


def checkpoint(folder: Path, cut: PreTrainedTokenizerFast, **shape: int) -> Path:
    """An untrained model as somebody else's script would save it, beside a file that is no part of it."""
    sizes = {"layers": 1, "width": 16, "ffn_width": 32, "heads": 2, "kv_heads": 1, "head_dim": 32, "max_positions": 256} | shape
    build_model(ModelConfig.model_validate(sizes), cut, seed=1).save_pretrained(folder)
    cut.save_pretrained(folder)
    (folder / "optimizer.pt").write_bytes(b"state")
    return folder


@pytest.fixture(scope="module")
def lab_with_corpus(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(Home(tmp_path_factory.mktemp("adopt")))


def test_a_recipe_goes_on_from_an_adopted_checkpoint(lab_with_corpus: Lab, tmp_path: Path) -> None:
    lab = lab_with_corpus
    source = checkpoint(tmp_path / "theirs", tokenizer())
    done = lab.call("adopt", str(source), "--as", "smoke", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    command = shlex.split(done.stdout.splitlines()[-1].removeprefix("continue with: "))
    assert command[:3] == ["priorlab", "run", "smoke"]

    plan = {entry["stage"].split("-")[0]: entry for entry in json.loads(lab.call("plan", *command[2:], "--json").stdout)}
    assert (plan["pretrain/theirs"]["state"], plan["rl/theirs"]["state"]) == ("done", "new")
    assert plan["pretrain/theirs"]["why"] == f"adopted from {source}"
    record = json.loads((Path(plan["pretrain/theirs"]["folder"]) / "record.json").read_text())
    expected = {name: digest for name, digest in manifest_of(source).items() if name != "optimizer.pt"}
    assert record["adopted"] == {"source": str(source), "manifest": expected, "link": False}
    assert record["manifest"] == expected

    again = lab.call("adopt", str(source), "--as", "smoke", *SMALL, "seed=7")  # nothing of it depends on the seed
    assert again.stdout.splitlines()[0] == f"already adopted as {plan['pretrain/theirs']['stage']}"
    without = {entry["kind"]: entry["state"] for entry in json.loads(lab.call("plan", "smoke", *SMALL, "--json").stdout)}
    assert without["pretrain"] == "new"  # it stands in for nothing that was not asked for

    ran = lab.call(*command[1:], "rl=null")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert any(line.startswith("theirs ") for line in ran.stdout.splitlines())
    forced = lab.call("stage", plan["pretrain/theirs"]["fingerprint"][:8], "--force")
    assert forced.returncode == 2
    assert "is an adopted checkpoint: it was not computed here" in forced.stderr
    assert json.loads(lab.call("gc", "--json").stdout)["items"] == []


def test_rl_goes_on_as_from_the_same_weights_trained_here(smoke: FinishedSweep, lab: Lab, tmp_path: Path) -> None:
    source = shutil.copytree(smoke.folder("pretrain").export, tmp_path / "theirs")
    lab.borrow(smoke.lab, smoke.node("corpus"))
    done = lab.call("adopt", str(source), "--as", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    changed = shlex.split(done.stdout.splitlines()[-1])[-2]
    ran = lab.call("run", "smoke", changed, "prior.name=theirs")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for role in ("rl", "evaluate@rl"):
        expected = smoke.folder(role).record()
        slug = smoke.node(role).slug.replace("ce-", "theirs-")
        found = lab.home.find_stage(f"{smoke.node(role).kind}/{slug}").record()
        assert expected is not None
        assert found is not None
        ours, theirs = ({k: v for k, v in record["metrics"].items() if k != "seconds_per_step"} for record in (found, expected))
        assert ours == pytest.approx(theirs, rel=1e-3)
        assert found["fingerprint"] != expected["fingerprint"]


def test_links_share_the_file(lab_with_corpus: Lab, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "theirs", tokenizer(), width=32)
    done = lab_with_corpus.call("adopt", str(source), "--as", "smoke", *SMALL, "--link")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = lab_with_corpus.home.path / "stages" / done.stdout.splitlines()[-2].split()[-1]
    assert (folder / "export" / "model.safetensors").samefile(source / "model.safetensors")


def test_another_tokenizer_is_refused_by_its_first_difference(lab_with_corpus: Lab, tmp_path: Path) -> None:
    done = lab_with_corpus.call("adopt", str(checkpoint(tmp_path / "theirs", tokenizer("!"))), "--as", "smoke", *SMALL)
    assert done.returncode == 2
    assert "its tokenizer differs from the corpus's: token '!' has id 2, in the corpus None" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_too_few_positions_are_refused_with_the_key(lab_with_corpus: Lab, tmp_path: Path) -> None:
    done = lab_with_corpus.call("adopt", str(checkpoint(tmp_path / "theirs", tokenizer(), max_positions=8)), "--as", "smoke", *SMALL)
    assert done.returncode == 2
    assert "has 8 positions, the recipe needs model.max_positions=" in done.stderr


def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(lab: Lab, tmp_path: Path) -> None:
    done = lab.call("adopt", str(tmp_path), "--as", "smoke")
    assert done.returncode == 2
    assert "has no config.json, tokenizer.json, *.safetensors; write it with model.save_pretrained(...)" in done.stderr
    assert not lab.home.path.exists()


def test_a_checkpoint_that_this_home_lacks_is_not_trained_in_its_place(lab_with_corpus: Lab) -> None:
    done = lab_with_corpus.call("run", "smoke", *SMALL, f"pretrain.adopted=sha256:{'ab' * 32}", "rl=null")
    assert done.returncode == 1
    assert "bring it in with `priorlab adopt CHECKPOINT --as RECIPE`" in done.stderr
