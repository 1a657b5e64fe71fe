"""`adopt`: a real checkpoint made outside goes in, and evaluation and RL go on from it; what does not fit is refused by name."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BloomConfig, PreTrainedTokenizerFast

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


ONE = "axes.prior=[ce]"
"""The sweep's other prior would be the same run: how an adopted model was trained is not known."""


def test_a_recipe_goes_on_from_an_adopted_checkpoint(lab_with_corpus: Lab, tmp_path: Path) -> None:
    lab = lab_with_corpus
    source = checkpoint(tmp_path / "theirs", tokenizer())
    done = lab.call("adopt", str(source), "--as", "smoke", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    command = shlex.split(done.stdout.splitlines()[-1].removeprefix("continue with: "))
    assert command[:3] == ["priorlab", "run", "smoke"]

    plan = {entry["stage"].split("-")[0]: entry for entry in json.loads(lab.call("plan", *command[2:], ONE, "--json").stdout)}
    assert (plan["pretrain/theirs"]["state"], plan["rl/theirs"]["state"]) == ("done", "new")
    assert plan["pretrain/theirs"]["why"] == f"adopted from {source}"
    record = json.loads((Path(plan["pretrain/theirs"]["folder"]) / "record.json").read_text())
    left = {"optimizer.pt", "generation_config.json"}
    expected = {name: digest for name, digest in manifest_of(source).items() if name not in left}
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


def change(folder: Path, **tensors: torch.Tensor) -> None:
    """Replace or add tensors of the checkpoint; in names, __ stands for a dot."""
    file = folder / "model.safetensors"
    new = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(load_file(file) | new, file, metadata={"format": "pt"})


def set_in(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def weights_in(lab: Lab) -> set[Path]:
    return set(lab.home.path.rglob("*.safetensors"))


def refused(lab: Lab, source: Path) -> str:
    """The message; the source is as it was, and no copy of it stays in the home."""
    before, copies = manifest_of(source), weights_in(lab)
    done = lab.call("adopt", str(source), "--as", "smoke", *SMALL)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert manifest_of(source) == before
    assert weights_in(lab) == copies
    return " ".join(done.stderr.split())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_the_tensor_s_name(lab_with_corpus: Lab, value: float, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "theirs", tokenizer())
    norm = torch.ones(16)
    norm[3] = value
    change(source, model__norm__weight=norm)
    assert f"model.norm.weight of {source} has values that are not finite (NaN or infinite)" in refused(lab_with_corpus, source)


def test_a_tied_model_may_store_its_output_layer_if_it_is_the_embedding(lab_with_corpus: Lab, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "theirs", tokenizer(), tied_embeddings=True)
    embedding = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    change(source, lm_head__weight=embedding + 1)
    assert "its lm_head.weight differs from model.embed_tokens.weight; remove that tensor" in refused(lab_with_corpus, source)
    change(source, lm_head__weight=embedding.clone(), model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert lab_with_corpus.call("adopt", str(source), "--as", "smoke", *SMALL).returncode == 0


def test_what_libraries_would_load_differently_is_refused(lab_with_corpus: Lab, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "theirs", tokenizer())
    save_file({"model.norm.weight": torch.zeros(16)}, source / "older.safetensors", metadata={"format": "pt"})
    assert "has model.norm.weight in two .safetensors files" in refused(lab_with_corpus, source)
    (source / "older.safetensors").unlink()
    (source / "adapter_config.json").write_text("{}")
    assert "is an adapter to another model; merge it into that one" in refused(lab_with_corpus, source)


def test_other_ends_in_the_config_are_refused(lab_with_corpus: Lab, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "theirs", tokenizer())
    set_in(source / "config.json", eos_token_id=[0, 7])
    assert "its config.json has eos_token_id [0, 7], its tokenizer 0: responses would end differently" in refused(
        lab_with_corpus, source
    )


def test_how_its_makers_sampled_changes_no_sample(lab_with_corpus: Lab, tmp_path: Path) -> None:
    """`generation_config.json` may name further ends of text and ways to sample, which engines would follow."""
    source = checkpoint(tmp_path / "theirs", tokenizer())
    (source / "generation_config.json").unlink()
    plain = lab_with_corpus.call("adopt", str(source), "--as", "smoke", *SMALL)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7], "repetition_penalty": 1.7}))
    again = lab_with_corpus.call("adopt", str(source), "--as", "smoke", *SMALL)
    assert again.stdout.splitlines()[0] == f"already adopted as {plain.stdout.splitlines()[-2].split()[-1]}"


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


def test_a_model_without_a_number_of_positions_is_refused_by_name(lab_with_corpus: Lab, tmp_path: Path) -> None:
    cut = tokenizer()
    AutoModelForCausalLM.from_config(BloomConfig(vocab_size=len(cut), hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    cut.save_pretrained(tmp_path)
    done = lab_with_corpus.call("adopt", str(tmp_path), "--as", "smoke", *SMALL)
    assert done.returncode == 2
    assert "its config.json (bloom) has no max_position_embeddings" in done.stderr.replace("\n", " ")
    assert "Error" not in done.stderr


def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(lab: Lab, tmp_path: Path) -> None:
    done = lab.call("adopt", str(tmp_path), "--as", "smoke")
    assert done.returncode == 2
    assert "has no config.json, tokenizer.json, *.safetensors; write it with model.save_pretrained(...)" in done.stderr
    assert not lab.home.path.exists()


def test_a_checkpoint_that_this_home_lacks_is_not_trained_in_its_place(lab_with_corpus: Lab) -> None:
    done = lab_with_corpus.call("run", "smoke", *SMALL, f"pretrain.adopted=sha256:{'ab' * 32}", "rl=null")
    assert done.returncode == 1
    assert "bring it in with `priorlab adopt CHECKPOINT --as RECIPE`" in done.stderr
