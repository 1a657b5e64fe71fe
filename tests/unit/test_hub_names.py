"""A name on the hub is a name on the hub, whatever folders lie where one calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.corpus import HubSource, PretrainedTokenizer
from pipeline.config.tasks import MathSource, MathTask
from pipeline.errors import PriorlabError
from stages.corpus.sources import find_documents
from stages.corpus.tokenizer import pretrained_tokenizer
from stages.tasks import build_task

NAME = "someone/numbers"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the dataset's name in the current folder, and no network."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "work" / NAME
    place.mkdir(parents=True)
    rows = [{"problem": "1 + 1?", "answer": "2", "text": "not the hub's"}] * 20
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path / "work")
    return place


def test_problems_of_the_hub_are_not_read_from_a_folder_of_that_name() -> None:
    math = build_task(MathTask(train=MathSource(hub=NAME, split="train"), evaluate=MathSource(hub=NAME, split="train")))
    with pytest.raises(PriorlabError, match=f"cannot load the dataset '{NAME}'"):
        math.problems("evaluate", 1, seed=0)


@pytest.mark.parametrize("documents", [None, 3], ids=["whole", "stream"])
def test_text_of_the_hub_is_not_read_from_a_folder_of_that_name(documents: int | None) -> None:
    with pytest.raises(PriorlabError, match=f"cannot load the dataset '{NAME}'"):
        list(find_documents(HubSource(dataset=NAME, documents=documents), "corpus.sources.web"))


def test_a_tokenizer_of_the_hub_is_not_read_from_a_folder_of_that_name(folder: Path) -> None:
    with pytest.raises(PriorlabError, match=f"a folder called '{NAME}' lies in .*; give {{kind: pretrained, folder: {NAME}}}"):
        pretrained_tokenizer(PretrainedTokenizer(hub=NAME))
