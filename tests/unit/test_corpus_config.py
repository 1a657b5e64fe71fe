"""The corpus's config: content is identity, shares add up, and bad settings are refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.config.corpus import AnySource, CorpusConfig, FilesSource, TaskSource
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe, load_sweep
from pipeline.experiment.fingerprint import canonical_json
from pipeline.experiment.graph import StageNode, build_graph

SIZES: dict[str, Any] = {"tokens": 100_000, "heldout_tokens": 10_000, "block_size": 64}


def corpus_node(*overrides: str, corpus: str = "realtext") -> StageNode:
    (cell,) = build_graph(load_recipe("quickstart", [f"corpus={corpus}", *overrides]).cells()).cells
    return cell.chain["corpus"]


def config(**sources: Any) -> CorpusConfig:
    return CorpusConfig(**SIZES, sources=TypeAdapter(dict[str, AnySource]).validate_python(sources))


def test_a_file_is_identified_by_content_not_by_name_or_path(tmp_path: Path) -> None:
    def identity(*paths: Path) -> dict[str, Any]:
        return config(mine={"kind": "files", "paths": [str(path) for path in paths]}).identity()

    first, second, elsewhere = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "inner" / "z.txt"
    elsewhere.parent.mkdir()
    first.write_text("one")
    second.write_text("two")
    elsewhere.write_text("one")
    assert identity(first, second) == identity(second, elsewhere)
    assert identity(tmp_path / "*.txt") == identity(first, second)
    assert identity(tmp_path / "**" / "*.txt") == identity(first, second, elsewhere) != identity(first, second)
    before = identity(first)
    first.write_text("another")
    assert identity(first) != before


@pytest.mark.parametrize("name", ["br[1]/x.jsonl", "x[1].jsonl", "what?.jsonl", "a*b.jsonl"])
def test_a_path_that_is_there_is_no_pattern(name: str, tmp_path: Path) -> None:
    for one, text in ((name, "mine"), ("x1.jsonl", "other"), ("whatx.jsonl", "other"), ("aab.jsonl", "other")):
        (tmp_path / one).parent.mkdir(exist_ok=True)
        (tmp_path / one).write_text(text)
    assert [file.path for file in FilesSource.model_validate({"paths": [str(tmp_path / name)]}).files] == [str(tmp_path / name)]


@pytest.mark.parametrize(("pattern", "names"), [("*.txt", "a"), ("**/*.txt", "ab"), ("in[n]er/*.txt", "b")])
def test_a_pattern_below_a_folder_with_brackets_finds_its_files(
    pattern: str, names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run[1]"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "inner" / "b.txt").write_text("two")
    monkeypatch.chdir(folder)
    for path in (str(folder / pattern), pattern):
        found = FilesSource.model_validate({"paths": [path]}).files
        assert sorted(Path(file.path).stem for file in found) == [*names]


def test_nested_folders_are_found_through_links_and_each_once(tmp_path: Path) -> None:
    for place in ("data/own", "elsewhere/deep"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / ".kept").mkdir()
        for name in ("one.txt", ".kept/two.txt"):
            (tmp_path / place / name).write_text(f"{place}/{name}")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere" / "deep", target_is_directory=True)
    for number in range(3):
        (tmp_path / "data" / "own" / f"loop{number}").symlink_to(tmp_path / "data", target_is_directory=True)
    found = FilesSource.model_validate({"paths": [str(tmp_path / "data" / "**" / "*.txt")]}).files
    assert sorted(Path(file.path).read_text() for file in found) == [
        "data/own/.kept/two.txt", "data/own/one.txt", "elsewhere/deep/.kept/two.txt", "elsewhere/deep/one.txt",
    ]  # fmt: skip
    inner = FilesSource.model_validate({"paths": [str(tmp_path / "d*" / "**" / "deep" / "**" / "*.txt")]}).files
    assert len(inner) == 2


def test_a_config_read_back_keeps_the_content_it_was_planned_with(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    planned = config(mine={"kind": "files", "paths": str(path)})
    path.unlink()
    assert CorpusConfig.model_validate(planned.model_dump(mode="json")) == planned


def test_weights_are_relative_zero_drops_a_source_and_order_does_not_matter() -> None:
    task, code = {"kind": "task"}, {"kind": "stdlib"}
    one = config(a=task | {"weight": 1}, b=code | {"weight": 3})
    assert one.identity() == config(b=code | {"weight": 6}, a=task | {"weight": 2}, c=code | {"weight": 0}).identity()
    assert canonical_json(one.identity()) != canonical_json(config(a=task, b=code).identity())
    assert list(one.used_sources) == list(config(b=code, a=task, c=code | {"weight": 0}).used_sources)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=6), st.integers(1000, 10**7))
def test_blocks_add_up_and_are_within_one_of_each_share(weights: list[float], tokens: int) -> None:
    sources: dict[str, AnySource] = {f"s{i}": TaskSource(weight=weight) for i, weight in enumerate(weights)}
    shares = CorpusConfig.model_construct(block_size=4, sources=sources).shares(tokens)
    assert sum(shares.values()) == tokens // 4
    for blocks, weight in zip(shares.values(), weights, strict=True):
        assert abs(blocks - tokens // 4 * weight / sum(weights)) < 1 + 1e-6


def test_how_a_corpus_is_made_is_not_part_of_its_identity() -> None:
    assert corpus_node("corpus.num_proc=4", "corpus.max_bad_share=0.5").fingerprint == corpus_node().fingerprint
    for change in ("corpus.tokens=700000", "corpus.tokenizer.vocab_size=1024", "corpus.sources.code.weight=3", "corpus.seed=1"):
        assert corpus_node(change).fingerprint != corpus_node().fingerprint, change


def test_text_without_the_task_is_shared_by_tasks() -> None:
    def fingerprints(*overrides: str) -> set[str]:
        return {corpus_node(*overrides, f"task={task}").fingerprint for task in ("countdown", "arithmetic")}

    assert len(fingerprints("corpus.sources.solutions.weight=0")) == 1
    assert len(fingerprints()) == 2
    assert len(fingerprints("corpus.sources.solutions.weight=0", "corpus.tokenizer=characters")) == 2  # the task's characters are in it


def test_only_what_needs_the_hub_reads_it() -> None:
    assert not corpus_node().config.reads_hub
    assert corpus_node("corpus.sources.web={kind: hub, dataset: some/text}").config.reads_hub
    assert not corpus_node("corpus.sources.web={kind: hub, dataset: some/text, weight: 0}").config.reads_hub
    assert corpus_node("task=gsm8k", "model.max_positions=2048").config.reads_hub
    assert not corpus_node("task=gsm8k", "model.max_positions=2048", "corpus.sources.solutions.weight=0").config.reads_hub


def test_a_weight_can_be_an_axis() -> None:
    sweep = load_sweep("realtext", ["axes.prior=[ce]", "axes.corpus.sources.solutions.weight=[1, 2]"])
    graph = build_graph(sweep.cells())
    assert [cell.cell.id for cell in graph.cells] == ["ce-seed0-weight1", "ce-seed0-weight2"]
    assert sum(node.kind == "corpus" for node in graph.stages.values()) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.sources.code.kind=stdlb"], "corpus.sources.code.kind is stdlb; corpus.sources.code needs one of files, hub, stdlib"),
        (["corpus.sources.stdlib={kind: stdlib, weigth: 1}"], "corpus.sources.stdlib has no key 'weigth'; did you mean 'weight'?"),
        (["corpus.sources.code.weight=-1"], "corpus.sources.code.weight is -1: input should be greater than or equal to 0"),
        (["corpus.sources.x={weight: 1}"], "corpus.sources.x.kind is missing"),
        (["corpus.sources.x={kind: files, paths: no.jsonl}"], "corpus.sources.x: paths has '{cwd}/no.jsonl', which cannot be read"),
        (["corpus.sources.x={kind: files, paths: ['no*.txt']}"], "corpus.sources.x: paths has 'no*.txt', which matches no file"),
        (["corpus.sources.x={kind: files, paths: README.md}"], "must end in .jsonl or .txt (plus .gz or .zst, if any), or in .parquet"),
        (["corpus.sources.x={kind: files}"], "corpus.sources.x: paths is empty; give at least one file"),
        (
            ["corpus.sources.x={kind: hub, dataset: some/text, split: 'train[:1%]', documents: 9}"],
            "split is 'train[:1%]', but streams (documents) take whole splits only; give split: train",
        ),
        (["corpus.tokenizer=bpee"], "corpus.tokenizer.kind is bpee; corpus.tokenizer needs one of bpe, characters, pretrained"),
        (["corpus.tokenizer.vocab_size=200"], "corpus.tokenizer.vocab_size is 200: input should be greater than or equal to 258"),
        (["corpus.documents=5"], "documents and heldout_tokens and tokens given with sources; set tokens and heldout_tokens, and"),
        (["corpus.tokens=null"], "heldout_tokens given with sources; set tokens and heldout_tokens"),
        (["corpus.sources.code.weight=0", "corpus.sources.solutions.weight=0"], "corpus: sources: all weights are 0"),
        (["corpus.heldout_tokens=200"], "heldout_tokens is 200: in blocks of 128 none is left for solutions; raise heldout_tokens"),
        (["corpus=countdown", "corpus.tokenizer={kind: pretrained}"], "corpus.tokenizer: hub is None and folder None; give exactly"),
        (["corpus=countdown", "corpus.tokenizer={kind: pretrained, folder: docs}"], "folder is 'docs', which holds no tokenizer.json"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_before_anything_runs(overrides: list[str], message: str) -> None:
    with pytest.raises(PriorlabError) as error:
        corpus_node(*overrides)
    assert message.replace("{cwd}", str(Path.cwd())) in str(error.value)


def test_files_are_ordered_by_content(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name)
    found = [FilesSource.model_validate({"paths": [str(tmp_path / f"{name}.txt") for name in names]}) for names in ("abcd", "dcba")]
    assert found[0].files == found[1].files
    assert len(found[0].files) == 4
