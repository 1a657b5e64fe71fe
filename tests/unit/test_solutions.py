"""Worked solutions in blocks: whole, in order, with responses alone to be learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.stages import SFTStage
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import build_graph
from stages.corpus.tokenizer import character_tokenizer
from stages.sft.solutions import find_solutions, pack
from stages.tasks import Document, build_task
from tests.unit.test_compare import evaluation, found_in, measured_settings, plans

TOKENIZER = character_tokenizer("ab:")
END = TOKENIZER.eos_token_id
START = TOKENIZER("")["input_ids"]
TEXTS = st.text("ab", max_size=6)


def ids_of(text: str) -> list[int]:
    """Without what the tokenizer starts a text with."""
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@given(st.lists(st.tuples(TEXTS, st.text("ab", min_size=1, max_size=6)), min_size=1, max_size=20), st.integers(15, 24))
def test_every_solution_is_whole_and_in_order_and_its_response_and_end_are_learned(pairs: list[tuple[str, str]], size: int) -> None:
    packed = pack([Document(f"{prompt}:", response) for prompt, response in pairs], TOKENIZER, size)
    assert (packed.block_size, packed.count, packed.too_long) == (size, len(pairs), 0)
    ids, labels = packed.rows(list(range(len(packed)))).unbind(1)
    learned = ids[labels >= 0].tolist()
    assert learned == labels[labels >= 0].tolist()
    assert learned == [token for _, response in pairs for token in [*ids_of(response), END]]
    read = [TOKENIZER.decode([token for token in block if token != END]) for block in ids.tolist()]
    assert "".join(read) == "".join(f"{prompt}:{response}" for prompt, response in pairs)
    for block, said in zip(ids.tolist(), labels.tolist(), strict=True):  # no solution goes on in the next block
        last = max(place for place, label in enumerate(said) if label >= 0)
        assert block[last] == END
        assert set(block[last:]) == {END}


def test_a_prompt_is_tokenized_as_in_rl_and_a_response_goes_on_from_it() -> None:
    ids, labels = pack([Document("a:", "b"), Document("", "a")], TOKENIZER, 10).rows([0])[0].tolist()
    assert ids == [*START, *ids_of("a:b"), END, *START, *ids_of("a"), END, END, END]
    assert labels == [-100, -100, -100, *ids_of("b"), END, -100, *ids_of("a"), END, -100, -100]


def test_solutions_that_fit_no_block_are_left_out() -> None:
    packed = pack([Document("aaaa:", "b"), Document("a:", "b")], TOKENIZER, 5)
    assert (packed.count, packed.too_long, len(packed)) == (1, 1, 1)
    assert packed.learned_share == pytest.approx(2 / 5)
    with pytest.raises(PriorlabError, match=r"of 1 solutions, none fits into a block of 5 tokens; raise sft.block_size"):
        pack([Document("aaaa:", "b")], TOKENIZER, 5)
    with pytest.raises(PriorlabError, match=r"sft.source is empty"):
        pack([], TOKENIZER, 5)


def stage(*overrides: str) -> SFTStage:
    (cell,) = load_recipe("smoke", ["sft=countdown", "sft.documents=5", *overrides]).cells()
    config = build_graph([cell]).cells[0].chain["sft"].config
    assert isinstance(config, SFTStage)
    return config


def from_file(path: Path, *overrides: str) -> SFTStage:
    return stage("sft.documents=null", f"sft.source={{file: {path}}}", *overrides)


def test_the_tasks_solutions_are_of_problems_that_nothing_else_uses() -> None:
    config = stage("sft.documents=200")
    task = build_task(config.task)
    others = {problem.prompt for split, count in (("rl", 20), ("evaluate", 12)) for problem in task.problems(split, count, 0)}  # type: ignore[arg-type]
    found = list(find_solutions(config))
    assert len(found) == 200
    assert not others & {document.prompt for document in found}


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "1+1=", "response": "2", "more": 0}) + "\n")
    assert list(find_solutions(from_file(path))) == [Document("1+1=", "2")]
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(json.dumps({"q": {"text": "1+1="}, "a": "2"}) + "\n")
    assert list(find_solutions(from_file(renamed, "sft.source={problem: q.text, response: a}"))) == [Document("1+1=", "2")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1+1="}, r"row 1 of .*mine.jsonl has no column 'response' \(sft.source.response\); it has prompt"),
        ({"prompt": "1+1=", "response": ""}, r"row 1 of .*mine.jsonl has '' in column 'response' \(sft.source.response\)"),
        ({"prompt": 2, "response": "2"}, r"row 1 of .*mine.jsonl has '2' in column 'prompt' \(sft.source.problem\)"),
    ],
)
def test_a_row_without_text_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(PriorlabError, match=message):
        list(find_solutions(from_file(path)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sft.documents=null"], "neither is given: set documents"),
        (["sft.source={hub: a/b}"], "both are given: set documents"),
        (["sft.documents=null", "sft.source={file: nowhere.jsonl}"], "nowhere.jsonl', which cannot be read"),
        (["rl.start=0.5", "pretrain.evaluate_at=[0.5]"], r"fine-tuning continues from the end of pre-training.*\(sft=null\)"),
        (["sft.global_batch=5"], r"global_batch is 5; it must be a multiple"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(PriorlabError, match=message):
        stage(*overrides)


def test_it_comes_after_midtraining_and_rl_gains_over_it() -> None:
    (plan,) = plans("axes.prior=[ce]", "midtrain=countdown", "sft=countdown")
    assert list(plan.chain) == ["corpus", "pretrain", "midtrain-corpus", "midtrain", "sft", "rl"]
    assert plan.chain["sft"].parents == {"checkpoint": plan.chain["midtrain"]}
    assert plan.chain["rl"].parents == {"checkpoint": plan.chain["sft"]}
    stages = {"pretrain": 1000, "midtrain": 200, "sft": 60, "rl": 160}
    base, middle, tuned, last = (replace(evaluation(plan, after, 0.5), step=step) for after, step in stages.items())
    (setting,) = measured_settings([base, middle, tuned, last])
    assert (setting.before, setting.after) == ([tuned], [last])
    assert tuned.tokens - middle.tokens == 60 * 16 * 64
    assert last.tokens == tuned.tokens


def test_its_own_prior_is_an_axis_and_cross_entropy_the_reference() -> None:
    found = plans("axes.prior=[ce]", "sft=countdown", "axes.sft.prior=[precision, ce]")
    assert len({plan.chain["pretrain"].fingerprint for plan in found}) == 1
    assert len({plan.chain["sft"].fingerprint for plan in found}) == 2
    evaluations = [evaluation(plan, after, 0.5) for plan in found for after in ("sft", "rl")]
    assert {(one.axis, one.setting, one.reference) for one in found_in(evaluations).differences["level"]} == {
        ("sft.prior", "ce sft.prior=precision", "ce sft.prior=ce")
    }


def test_what_decides_the_numbers_is_its_identity(tmp_path: Path) -> None:
    def fingerprint(*overrides: str) -> str:
        (plan,) = plans("axes.prior=[ce]", "sft=countdown", *overrides)
        return plan.chain["sft"].fingerprint

    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "1", "response": "2"}\n')
    from_here = ("sft.documents=null", f"sft.source={{file: {path}}}")
    assert fingerprint("sft.launch.micro_batch=8", "sft.name=other") == fingerprint()
    for changed in (["sft.documents=9"], ["sft.prior=focal"], ["sft.block_size=32"], ["task.numbers=[2]"], [*from_here]):
        assert fingerprint(*changed) != fingerprint(), changed
    before = fingerprint(*from_here)
    assert fingerprint(*from_here, "corpus.seed=1") != before  # another pre-trained model
    path.write_text('{"prompt": "1", "response": "3"}\n')
    assert fingerprint(*from_here) != before


def test_the_default_prior_is_cross_entropy() -> None:
    assert stage().sft.prior.knobs()["beta"] == 0
    assert stage("prior=precision").sft.prior.knobs()["beta"] == 0
