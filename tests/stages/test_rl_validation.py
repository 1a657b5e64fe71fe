"""RL that is evaluated while it runs: training does not change, and the last and best policies are both exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.compare.evaluations import load_evaluations
from pipeline.compare.validations import load_validation
from pipeline.config.stages import RLStage
from pipeline.experiment.graph import StageNode
from pipeline.store.folders import Home
from stages.rl.problems import training_and_validation
from stages.rl.validation import best_step
from stages.tasks import build_task
from tests.conftest import FinishedSweep, Lab, finish, kill_once_saved, rows, start
from tests.stages.conftest import rl_stage

# The small sweep's RL split has 24 problems, of which it trains on 20.
VALIDATED = ("rl.validation={every: 2, problems: 4, samples: 8, best_k: 8}", "rl.export=best")


@pytest.fixture(scope="module")
def validated(smoke: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, StageNode]:
    """The small sweep's RL with validation, killed after step 2 and resumed."""
    lab = Lab(Home(tmp_path_factory.mktemp("validated")))
    node = rl_stage(lab, smoke, *VALIDATED)
    kill_once_saved(lab, node, step=2)
    finish(lab, node, start(lab, node))
    return lab, node


def test_it_is_measured_before_the_first_step_at_intervals_and_at_the_end(validated: tuple[Lab, StageNode]) -> None:
    measured = [row for row in rows(*validated) if "validation/pass@8" in row]
    assert [row["step"] for row in measured] == [0, 2, 3]
    assert [row["rollouts_generated"] for row in measured] == [0, 64, 96]
    assert all(0 <= row["validation/pass@1"] <= row["validation/pass@8"] <= 1 for row in measured)


def test_the_correct_samples_of_each_problem_are_kept(validated: tuple[Lab, StageNode]) -> None:
    """Killed after step 2 and resumed, the file has every validation once, with the problems that training leaves out."""
    lab, node = validated
    measured = [row for row in rows(lab, node) if "validation/pass@8" in row]
    found = load_validation(lab.folder(node), rows(lab, node), samples=8)
    assert found is not None
    assert found.solved.shape == (3, 4)
    assert (found.solved.mean(axis=1) / 8).tolist() == pytest.approx([row["validation/pass@1"] for row in measured])
    assert {name: spent.tolist() for name, spent in found.spent.items() if name != "seconds"} == {
        "steps": [0, 2, 3],
        "rollouts": [0, 64, 96],
    }
    assert found.spent["seconds"][0] == 0 < found.spent["seconds"][1] < found.spent["seconds"][2]


def test_the_divergence_from_the_base_starts_at_0_and_is_that_of_the_trained_policy(
    validated: tuple[Lab, StageNode], smoke: FinishedSweep
) -> None:
    """Held against responses sampled and scored here, of the same problems, by the last policy and the base."""
    lab, node = validated
    measured = [row for row in rows(lab, node) if "validation/kl_token" in row]
    assert [row["step"] for row in measured] == [0, 2, 3]
    assert measured[0]["validation/kl_response"] == measured[0]["validation/kl_token"] == 0
    for row in measured:
        assert row["validation/kl_response"] == pytest.approx(row["validation/kl_token"] * row["validation/length"])
    record = lab.folder(node).record()
    assert record is not None
    assert record["metrics"]["validation/kl_response"] == measured[-1]["validation/kl_response"]

    config = node.config
    assert isinstance(config, RLStage)
    _, problems = training_and_validation(build_task(config.task), config.rl, config.seed)
    tokenizer = AutoTokenizer.from_pretrained(smoke.folder("pretrain").export)
    last, base = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (lab.folder(node).export / "last", smoke.folder("pretrain").export)
    )
    ratios = []
    torch.manual_seed(0)
    for problem in problems:
        prompt = torch.tensor([tokenizer(problem.prompt)["input_ids"]] * 256)
        with torch.no_grad():
            ids = last.generate(
                prompt, do_sample=True, top_k=0, max_new_tokens=config.rl.max_response_tokens, pad_token_id=tokenizer.eos_token_id
            )
            new = ids[:, prompt.shape[1] :, None]
            logits = [model(input_ids=ids).logits[:, prompt.shape[1] - 1 : -1] for model in (last, base)]
        ours, theirs = (of.log_softmax(-1).gather(-1, new)[..., 0] for of in logits)
        ends = (new[..., 0] == tokenizer.eos_token_id).cumsum(-1)
        counted = ends - (new[..., 0] == tokenizer.eos_token_id).long() == 0  # up to the first end, it included
        ratios.append(((ours - theirs) * counted).sum(-1))
    found = torch.cat(ratios)
    assert found.mean() > 0
    logged = measured[-1]["validation/kl_response"]
    assert logged == pytest.approx(found.mean().item(), abs=4 * found.std().item() / 32**0.5)


def test_processes_with_unequal_shares_of_the_problems_measure_it_on_partitions(smoke: FinishedSweep, lab: Lab) -> None:
    """Under ZeRO-3 a rank that made fewer passes than another would wait for it forever. Coin flips, so that the policy does move."""
    launch = "rl.launch={processes: 2, zero_stage: 3, micro_batch: 4}"
    node = rl_stage(lab, smoke, "rl.validation={every: 2, problems: 3, samples: 8}", launch, "rl.steps=2", "rl.advantage=random")
    first, last = (row for row in finish(lab, node, start(lab, node)) if "validation/kl_token" in row)
    assert (first["step"], last["step"]) == (0, 2)
    assert first["validation/kl_response"] == pytest.approx(0, abs=1e-5)
    assert last["validation/kl_response"] > 1e-3


def test_training_is_the_same_without_validation(validated: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    trained = [row for row in rows(*validated) if "loss" in row]
    for row, other in zip(trained, rows(smoke.lab, smoke.node("rl")), strict=True):
        for metric in ("step", "loss", "reward", "entropy", "completions/mean_length"):
            assert row[metric] == other[metric], (row["step"], metric)
    ours = load_file(validated[0].folder(validated[1]).export / "last" / "model.safetensors")
    for name, weights in load_file(smoke.folder("rl").export / "model.safetensors").items():
        assert torch.equal(ours[name], weights), name


def test_the_best_policy_is_exported(validated: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    lab, node = validated
    folder = lab.folder(node)
    best = best_step(rows(lab, node), best_k=8)
    record = folder.record()
    assert record is not None
    assert (record["metrics"]["best_step"], record["metrics"]["exported_step"]) == (best, best)
    assert {"model.safetensors", "last/model.safetensors"} <= record["manifest"].keys()
    same_step = {0: smoke.folder("pretrain").export, 3: folder.export / "last"}
    if best in same_step:
        ours, theirs = (load_file(path / "model.safetensors") for path in (folder.export, same_step[best]))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not folder.checkpoints.exists()


def test_results_name_the_step_of_the_evaluated_policy(validated: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    from tests.conftest import smoke_graph

    lab, node = validated
    graph = smoke_graph("axes.prior=[ce]", *VALIDATED)
    (plan,) = graph.cells
    lab.borrow(smoke.lab, smoke.node("evaluate@pretrain"))
    source, target = smoke.folder("evaluate@rl").path, lab.folder(plan.evaluations["rl"]).path
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_as(source, target)
    steps = {evaluation.after: evaluation.step for evaluation in load_evaluations(graph, lab.home)}
    assert steps == {"pretrain": 300, "rl": lab.folder(node).record()["metrics"]["exported_step"]}  # type: ignore[index]


def copy_as(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)
    record = json.loads((target / "record.json").read_text())
    record["fingerprint"] = target.name.rpartition("-")[2]
    (target / "record.json").write_text(json.dumps(record))
