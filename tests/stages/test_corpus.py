"""The corpus stage: exact shares, whole documents, separate held-out text, and the same blocks however it runs."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.config.corpus import PretrainedTokenizer
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import StageNode
from pipeline.store.files import write_json_atomically
from pipeline.store.folders import Home
from stages.contract import Stage
from stages.corpus.build import build
from stages.corpus.pack import Blocks, packed_blocks, save_blocks
from stages.corpus.text import is_heldout
from stages.corpus.tokenizer import END, PAD, bpe_tokenizer, character_tokenizer, check_prompts, pretrained_tokenizer
from stages.guard import Guard
from stages.tasks import Problem
from tests.conftest import Lab, smoke_graph, start

Built = tuple[Path, dict[str, Any]]
Build = Callable[..., Built]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Documents of two sources that share no letter; some are duplicates."""
    rng = random.Random(0)

    def words(letters: str, count: int) -> list[str]:
        made = [" ".join("".join(rng.choices(letters, k=5)) for _ in range(rng.randint(3, 40))) for _ in range(count)]
        return made + made[::7]

    return {"low": words("abcde", 300), "high": words("VWXYZ", 300)}


@pytest.fixture(scope="module")
def sources(texts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "low.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts["low"]))
    (folder / "high.txt").write_text("\n\n".join(texts["high"]))
    return (
        f"low: {{kind: files, paths: [{folder}/low.jsonl], weight: 3}}, "
        f'high: {{kind: files, paths: [{folder}/high.txt], separator: "\\n\\n", weight: 1}}'
    )


def corpus_node(*overrides: str) -> StageNode:
    sizes = ["documents=null", "heldout_documents=null", "tokens=16000", "heldout_tokens=1664", "heldout_share=0.2", "block_size=32"]
    return smoke_graph("axes.prior=[ce]", *(f"corpus.{size}" for size in sizes), *overrides).cells[0].chain["corpus"]


@pytest.fixture
def made(tmp_path: Path) -> Build:
    """Builds in this process; the export folder and the metrics."""

    def run(*overrides: str) -> Built:
        home = Home(tmp_path / str(len(list(tmp_path.iterdir()))))
        node = corpus_node(*overrides)
        folder = node.folder(home)
        folder.path.mkdir(parents=True)
        write_json_atomically(folder.spec, node.spec(home, "test"))
        metrics = build(Stage(folder.spec, Guard()))
        return folder.export, metrics

    return run


def rows_of(export: Path, part: str = "train") -> list[list[int]]:
    blocks = Blocks(export / part)
    return blocks.rows(list(range(len(blocks)))).tolist()


def documents_in(rows: list[list[int]], tokenizer: Any) -> list[str]:
    """The texts between ends."""
    text = tokenizer.decode([token for row in rows for token in row], skip_special_tokens=False)
    return text.split(tokenizer.eos_token)[1:-1]


def test_shares_are_exact_blocks_are_of_one_source_and_evenly_spread(made: Build, sources: str) -> None:
    export, metrics = made(f"corpus.sources={{{sources}}}")
    assert {key: metrics[key] for key in metrics if key.endswith("_blocks")} == {
        "train_blocks": 500, "low/train_blocks": 375, "high/train_blocks": 125,
        "heldout_blocks": 52, "low/heldout_blocks": 39, "high/heldout_blocks": 13,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(export / "tokenizer")
    letters = [{*tokenizer.decode(row, skip_special_tokens=True)} - {" "} for row in rows_of(export)]
    high = [found <= {*"VWXYZ"} for found in letters]
    assert all(is_high or found <= {*"abcde"} for is_high, found in zip(high, letters, strict=True))
    assert sum(high) == 125
    assert all(sum(high[start : start + 40]) == 10 for start in range(0, 480, 40))
    assert not (export / "work").exists()


def test_documents_stay_whole_and_in_one_split(made: Build, sources: str, texts: dict[str, list[str]]) -> None:
    export, metrics = made(f"corpus.sources={{{sources}}}", "corpus.sources.high.weight=0", "corpus.tokens=32000")
    tokenizer = AutoTokenizer.from_pretrained(export / "tokenizer")
    kept = {part: documents_in(rows_of(export, part), tokenizer) for part in ("train", "heldout")}
    whole = Counter(texts["low"])
    train = Counter(text for text in texts["low"] if not is_heldout(text, 0.2))
    assert Counter(kept["train"]) <= train  # each at most as often as in the text
    assert sum(train.values()) - len(kept["train"]) < 40  # those that the budget leaves out
    assert len(kept["heldout"]) > 10
    assert set(kept["heldout"]) <= set(whole) - set(train)
    assert metrics["low/passes"] == pytest.approx(1, abs=0.1)
    assert metrics["low/documents"] == len(texts["low"])


def test_the_number_of_processes_changes_nothing_and_the_seed_does(made: Build, sources: str) -> None:
    overrides = [
        f"corpus.sources={{{sources}, sums: {{kind: task}}}}",
        "corpus.tokenizer={kind: bpe, vocab_size: 300, train_characters: 9999}",
    ]
    overrides.append("corpus.sources.high.weight=0")
    one, two, other = (made(*overrides, *more)[0] for more in ([], ["corpus.num_proc=2"], ["corpus.seed=1"]))
    for part in ("train", "heldout"):
        assert rows_of(one, part) == rows_of(two, part)
    assert (one / "tokenizer" / "tokenizer.json").read_bytes() == (two / "tokenizer" / "tokenizer.json").read_bytes()
    assert sorted(rows_of(one)) != sorted(rows_of(other))


def test_a_source_that_runs_out_is_named_unless_it_may_be_repeated(made: Build, sources: str) -> None:
    overrides = [f"corpus.sources={{{sources}}}", "corpus.sources.low.weight=0", "corpus.tokens=64000"]
    with pytest.raises(
        PriorlabError, match=r"source 'high' ends after 1,\d\d\d of the 2,000 blocks.*raise corpus\.sources\.high\.passes"
    ):
        made(*overrides)
    export, metrics = made(*overrides, "corpus.sources.high.passes=2")
    assert 1 < metrics["high/passes"] < 2
    twice = Counter(documents_in(rows_of(export), AutoTokenizer.from_pretrained(export / "tokenizer")))
    assert set(twice.values()) >= {1, 2}


def test_solutions_are_tokenized_like_prompts_and_responses_in_rl(made: Build) -> None:
    export, _ = made("corpus.sources={sums: {kind: task}}", "corpus.tokenizer={kind: bpe, vocab_size: 320, train_characters: 9999}")
    tokenizer = AutoTokenizer.from_pretrained(export / "tokenizer")
    stream = [token for row in rows_of(export) for token in row]
    for text in documents_in(rows_of(export), tokenizer)[:100]:
        prompt, response = text[: text.index(":") + 1], text[text.index(":") + 1 :]
        expected = [
            *tokenizer(prompt)["input_ids"],
            *tokenizer(response, add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        assert tokenizer(prompt)["input_ids"][0] == tokenizer.eos_token_id
        assert stream[: len(expected)] == expected
        stream = stream[len(expected) - 1 :]


def test_blocks_are_read_across_the_parts_of_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.corpus.pack._CUT", 40)
    monkeypatch.setattr("stages.corpus.pack._WRITTEN", 40)
    documents = [np.arange(length, dtype=np.int32) for length in range(1, 60)]
    expected = np.concatenate([[7], *documents])
    expected = expected[: len(expected) // 8 * 8].reshape(-1, 8)
    assert save_blocks(packed_blocks(documents, 7, 8), 8, tmp_path / "train") == len(expected)
    blocks = Blocks(tmp_path / "train")
    numbers = np.random.default_rng(0).permutation(len(expected))
    assert (blocks.rows(numbers).numpy() == expected[numbers]).all()


TRAINED = bpe_tokenizer(iter(["def f(x): return x + 1\n    # 123 naïve\n"] * 50), 300)


@given(st.text())
def test_a_trained_bpe_loses_no_text_and_treats_special_tokens_in_it_as_text(text: str) -> None:
    backend = TRAINED.backend_tokenizer
    backend.encode_special_tokens = True
    for one in (text, f"{text}{END}{text}"):
        ids = backend.encode(one, add_special_tokens=False).ids
        assert TRAINED.eos_token_id not in ids
        assert TRAINED.decode(ids) == one
    backend.encode_special_tokens = False


def test_a_trained_bpe_keeps_digits_single() -> None:
    assert TRAINED.tokenize("12345") == ["1", "2", "3", "4", "5"]


def test_a_bpe_that_comes_out_smaller_than_asked_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    made = bpe_tokenizer(iter(["abab"] * 9), 4096)
    assert f"warning: the trained BPE has {len(made)} tokens, corpus.tokenizer.vocab_size asks for 4,096" in capsys.readouterr().err
    bpe_tokenizer(iter(["abab"] * 9), len(made))
    assert capsys.readouterr().err == ""


def save_tokenizer(folder: Path, *, eos: str | None, pad: str | None = None) -> Path:
    """A foreign one: it starts texts with <s>, and has no padding unless given."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {name: token for name, token in (("eos_token", eos), ("pad_token", pad)) if token is not None}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_an_existing_tokenizer_puts_its_end_before_prompts_and_pads_with_a_separate_token(pad: str | None, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "theirs", eos="</s>", pad=pad)
    pretrained_tokenizer(PretrainedTokenizer(folder=str(folder))).save_pretrained(tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.convert_ids_to_tokens(tokenizer("1+1")["input_ids"]) == ["</s>", "1", "+", "1"]
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == ("</s>", "</s>", PAD)
    assert len(tokenizer) == 256 + 3


def test_a_tokenizer_that_changed_or_has_no_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PriorlabError, match="has no end-of-text token"):
        pretrained_tokenizer(PretrainedTokenizer(folder=str(save_tokenizer(tmp_path / "endless", eos=None))))
    config = PretrainedTokenizer(folder=str(save_tokenizer(tmp_path / "theirs", eos="</s>")))
    shutil.copyfile(tmp_path / "endless" / "tokenizer_config.json", tmp_path / "theirs" / "tokenizer_config.json")
    with pytest.raises(PriorlabError, match=r"the tokenizer in .* \(corpus\.tokenizer\.folder\) has changed since the run was planned"):
        pretrained_tokenizer(config)


ENDOFTEXT = "<|endoftext|>"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def one_token_for_all(folder: Path, model: str, known: list[str]) -> PreTrainedTokenizerFast:
    """As GPT-2 and GPT-NeoX have it: `<|endoftext|>` is unknown, start and end at once. Read as the recipe's `corpus.tokenizer`."""
    vocabulary = {token: number for number, token in enumerate([ENDOFTEXT, *known])}
    match model:
        case "bytes":
            tokenizer = Tokenizer(models.BPE(vocabulary, []))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        case "characters":
            tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=ENDOFTEXT))
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        case "bpe":
            tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=ENDOFTEXT, fuse_unk=True))
        case _:
            tokenizer = Tokenizer(models.Unigram([(token, -float(number)) for token, number in vocabulary.items()], unk_id=0))
    tokenizer.add_special_tokens([AddedToken(ENDOFTEXT, special=True, normalized=False)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=ENDOFTEXT, bos_token=ENDOFTEXT, eos_token=ENDOFTEXT
    ).save_pretrained(folder)  # fmt: skip
    return pretrained_tokenizer(PretrainedTokenizer(folder=str(folder)))


@pytest.mark.parametrize(("model", "known"), [("bytes", BYTES), ("characters", [*"1+=:"]), ("bpe", [*"1+=:"]), ("unigram", [*"1+=:"])])
def test_a_token_that_is_unknown_and_end_at_once_is_no_unknown_text(model: str, known: list[str], tmp_path: Path) -> None:
    tokenizer = one_token_for_all(tmp_path, model, known)
    problems = [Problem("a", "1+1=", {}), Problem("b", f"{ENDOFTEXT}1+1:", {})]  # as a chat template may write it
    assert tokenizer(problems[0].prompt)["input_ids"][0] == tokenizer.unk_token_id
    check_prompts(problems, tokenizer, 20)


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("characters", [*"1+"]), ("bpe", [*"1+"]), ("unigram", [*"1+"]),
        ("bytes", [byte for byte in BYTES if byte != "="]),  # would be dropped without a word
    ],
)  # fmt: skip
def test_text_that_a_tokenizer_does_not_know_is_found_whatever_the_token_is(model: str, known: list[str], tmp_path: Path) -> None:
    tokenizer = one_token_for_all(tmp_path, model, known)
    with pytest.raises(PriorlabError, match=r"the prompt '1\+1=' has '=', which the tokenizer does not know; choose another corpus"):
        check_prompts([Problem("a", "1+1", {}), Problem("b", "1+1=", {})], tokenizer, 20)


def test_an_unknown_token_that_no_role_names_is_found(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "?": 1, "1": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path)
    read = pretrained_tokenizer(PretrainedTokenizer(folder=str(tmp_path)))
    check_prompts([Problem("a", "1?1", {})], read, 20)
    with pytest.raises(PriorlabError, match="has '2', which the tokenizer does not know"):
        check_prompts([Problem("a", "12", {})], read, 20)


def test_a_character_without_a_token_of_its_own_is_named(tmp_path: Path) -> None:
    with pytest.raises(PriorlabError, match="the prompt '1=' has '=', which the tokenizer does not know"):
        check_prompts([Problem("a", "1=", {})], character_tokenizer("1"), 20)


def test_a_tokenizer_that_does_not_know_the_task_is_refused_before_training(made: Build, sources: str, tmp_path: Path) -> None:
    for name, known in (("all", BYTES), ("some", [byte for byte in BYTES if byte != ":"])):
        one_token_for_all(tmp_path / name, "bytes", known)
    overrides = [f"corpus.sources={{{sources}}}", "corpus.tokenizer={kind: pretrained}"]
    made(*overrides, f"corpus.tokenizer.folder={tmp_path}/all")
    with pytest.raises(PriorlabError, match=r"the prompt '.*' has ':', which the tokenizer does not know; choose another corpus"):
        made(*overrides, f"corpus.tokenizer.folder={tmp_path}/some")


def test_the_stage_stops_at_bad_input_with_its_place_and_leaves_no_trace(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n{"text": \n')
    node = corpus_node(f"corpus.sources={{mine: {{kind: files, paths: [{tmp_path}/rows.jsonl]}}}}", "corpus.num_proc=2")
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
    assert start(lab, node).wait(timeout=200) == 2
    log = (folder.path / "out.log").read_text()
    assert (
        f"error: source 'mine': 1 of 2 documents cannot be read, more than corpus.max_bad_share = 0.01 allows: {tmp_path}/rows" in log
    )
    assert "line 2 is not JSON" in log
    assert "Traceback" not in log
    assert not folder.export.exists()
    assert folder.record() is None
