"""Benchmarks of lm-evaluation-harness on a task of local data: the same answers as computed manually, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.evaluation import EvaluateConfig, HarnessConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from stages.corpus.tokenizer import character_tokenizer
from stages.evaluate.harness import benchmark
from stages.pretrain.model import build_model

pytest.importorskip("lm_eval", reason="needs lm-eval: .venv/bin/python -m pip install lm-eval==0.4.13")

SUMS = [{"a": a, "b": b, "choices": [str(a + b), str(a * b + 1), str(abs(a - b))]} for a, b in ((1, 2), (3, 4), (5, 2), (4, 4), (7, 1))]


def write_task(folder: Path, name: str, **more: object) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{a}}+{{b}}=",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | more))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned nothing: its arbitrary answers show whether they are really its own."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (cell,) = load_recipe("smoke").cells()
    tokenizer = character_tokenizer("0123456789+=")
    build_model(cell.recipe.model.model_copy(update={"init_std": 0.5}), tokenizer, seed=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def protocol() -> EvaluateConfig:
    (cell,) = load_recipe("smoke").cells()
    return cell.recipe.evaluate


def test_a_task_of_local_data_scores_what_the_models_own_log_probs_say(checkpoint: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "local_sums")
    found = benchmark(checkpoint, protocol(), HarnessConfig(tasks=("local_sums",), folder=str(tmp_path), limit=4), tmp_path / "work")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    expected = []
    for row in SUMS[:4]:
        scores = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            prompt, whole = (tokenizer(f"{row['a']}+{row['b']}={rest}")["input_ids"] for rest in ("", choice))
            with torch.inference_mode():
                log_probs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(log_probs[at - 1, whole[at]].item() for at in range(len(prompt), len(whole))))
        expected.append(float(scores.index(max(scores)) == 0))
    assert found["values"]["local_sums/acc"] == expected
    assert found["results"]["local_sums"]["acc,none"] == pytest.approx(sum(expected) / 4)


def test_each_task_can_have_its_own_number_of_examples(checkpoint: Path, tmp_path: Path) -> None:
    """Against one number for all: the task that has it scores alike, and a group passes its number on."""
    examples = {"fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}, "fewshot_delimiter": "="}
    scored = {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "{{choices[0]}}"}
    metrics = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]  # a log-prob per problem
    for name in ("local_one", "local_two"):
        write_task(tmp_path, name, **examples, **scored, metric_list=metrics)
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"group": "local_both", "task": ["local_two"]}))

    def results(tasks: tuple[str, ...], fewshot: int | dict[str, int]) -> dict[str, dict[str, object]]:
        asked = HarnessConfig(tasks=tasks, fewshot=fewshot, folder=str(tmp_path))
        found: dict[str, dict[str, object]] = benchmark(checkpoint, protocol(), asked, tmp_path / "work")["values"]
        return found

    alone = {number: results(("local_one", "local_two"), number) for number in (0, 2)}
    assert alone[0]["local_one/perplexity"] != alone[2]["local_one/perplexity"]  # else the model does not look at the examples
    mixed = results(("local_one", "local_both"), {"local_both": 2})
    assert mixed.keys() == alone[0].keys()
    for number, name in ((0, "local_one/perplexity"), (2, "local_two/perplexity")):
        assert mixed[name] == pytest.approx(alone[number][name], rel=1e-4)  # batches are padded differently


def test_examples_of_a_task_that_is_not_run_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fewshot has mmlu_pro, not among tasks \(mmlu\)"):
        HarnessConfig(tasks=("mmlu",), fewshot={"mmlu_pro": 5})


def test_tasks_that_run_code_are_refused_unless_asked_for(tmp_path: Path) -> None:
    write_task(tmp_path, "local_code", unsafe_code=True)
    with pytest.raises(PriorlabError, match=r"local_code run code that the model wrote.*evaluate.harness.allow_code=true"):
        benchmark(Path("/none"), protocol(), HarnessConfig(tasks=("local_code",), folder=str(tmp_path)), tmp_path / "work")


def test_an_unknown_task_is_named_with_the_nearest(tmp_path: Path) -> None:
    write_task(tmp_path, "local_sums")
    with pytest.raises(PriorlabError, match="has 'local_sum', unknown to lm-eval; did you mean 'local_sums'"):
        benchmark(Path("/none"), protocol(), HarnessConfig(tasks=("local_sum",), folder=str(tmp_path)), tmp_path / "work")


def test_a_folder_of_tasks_counts_by_its_content_and_may_not_change_after_planning(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "own.yaml").write_text("task: own\n")
    planned, moved = (HarnessConfig(tasks=("own",), folder=str(folder)) for folder in (first, second))
    assert planned.identity() == moved.identity()
    (first / "own.yaml").write_text("task: own\nnum_fewshot: 3\n")
    with pytest.raises(PriorlabError, match="has changed since the run was planned"):
        benchmark(Path("/none"), protocol(), planned, tmp_path / "work")
