"""The rest of a report: the settings, example responses, and where each number comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Floats
from pipeline.compare.measured import MeasuredSetting
from pipeline.compare.samples import with_current_columns
from pipeline.config.recipe import RecipeConfig
from pipeline.experiment.axes import axis_keys
from pipeline.experiment.graph import Graph
from pipeline.store.folders import Home

_SETTINGS_WITH_EXAMPLES = 12
_SAMPLES = 4
_LONGEST = 2000
"""Characters of a response that are shown."""


def settings(compared: Sequence[MeasuredSetting]) -> list[tuple[str, str]]:
    """Names and values of what all cells share and a reader needs."""
    if not compared:
        return []
    cell = compared[0].before[0].plan.cell
    recipe = cell.recipe
    tokens = recipe.pretrain.steps * recipe.pretrain.global_batch * recipe.corpus.block_size
    rl, protocol, model = recipe.rl, recipe.evaluate, recipe.model
    found = {
        "task": recipe.task.name,
        "model": f"{model.name}: {model.layers} layers of width {model.width}",
        "pretrain": f"{tokens:,} tokens in {recipe.pretrain.steps:,} steps, learning rate {recipe.pretrain.optimizer.learning_rate:g}",
        "evaluate": f"{_problems(recipe)}, {protocol.samples} samples each at temperature {protocol.temperature:g}, "
        f"up to {protocol.max_response_tokens} tokens",
    }
    for kind, prior in (("midtrain", recipe.midtrain_prior), ("sft", recipe.sft and recipe.sft.prior)):
        if prior is not None and kind in recipe.trainings:
            later, block = recipe.trainings[kind]
            found[kind] = (
                f"{later.steps * later.global_batch * block:,} tokens in {later.steps:,} steps, blocks of {block}, learning rate "
                f"{later.optimizer.learning_rate:g}, prior {prior.name}"
            )
    if rl is not None:
        found["rl"] = (
            f"{rl.steps} steps of {rl.prompts_per_step} prompts x {rl.samples_per_prompt} samples, learning rate "
            f"{rl.optimizer.learning_rate:g}, advantage {rl.advantage.name}, "
            f"exploration {rl.exploration.name}"
        )
    varied = {key.partition(".")[0] for setting in compared for axis in setting.coordinates for key in axis_keys(axis)}
    return [(name, text + (" (varied, see the table)" if name in varied else "")) for name, text in found.items()]


def _problems(recipe: RecipeConfig) -> str:
    counts = {name: protocol.problems for name, (_, protocol) in recipe.evaluation_sets.items()}
    if len(counts) == 1:
        return f"{next(iter(counts.values()))} problems"
    return f"the mean over {len(counts)} sets ({', '.join(f'{name} {count}' for name, count in counts.items())} problems)"


def prior_rows(compared: Sequence[MeasuredSetting]) -> list[tuple[str, str, str]]:
    """Each prior's name, its objective, and the knobs that matter; priors of one name may differ in k."""
    priors = [setting.before[0].plan.cell.recipe.prior for setting in compared]
    return list(dict.fromkeys((prior.name, prior.kind, prior.knobs_text) for prior in priors))


@dataclass(frozen=True)
class Response:
    text: str
    correct: bool
    greedy: bool


@dataclass(frozen=True)
class Example:
    """One problem, with its greedy response and the first samples, before and after RL."""

    problem: str
    kind: str
    rates: tuple[str, str]
    before: list[Response]
    after: list[Response]


def examples(compared: Sequence[MeasuredSetting], home: Home) -> list[tuple[str, list[Example]]]:
    """From each finished setting's first cell, the problems with the largest, the median and the smallest gain, of the first set."""
    found = []
    for setting in [setting for setting in compared if setting.finished][:_SETTINGS_WITH_EXAMPLES]:
        of_set = next(iter(setting.before[0].sets), "")
        before, after = setting.before[0].on(of_set), setting.after[0].on(of_set)
        chosen = _extremes_and_middle(after.values("pass@k", 1) - before.values("pass@k", 1))
        texts = [_responses(evaluation, [before.problems[index] for index in chosen], home) for evaluation in (before, after)]
        found.append(
            (
                before.plan.cell.id,
                [
                    Example(
                        before.problems[index],
                        kind,
                        (f"{before.values('pass@k', 1)[index]:.2f}", f"{after.values('pass@k', 1)[index]:.2f}"),
                        *(of_side.get(before.problems[index], []) for of_side in texts),
                    )
                    for index, kind in chosen.items()
                ],
            )
        )
    return found


def _extremes_and_middle(gains: Floats) -> dict[int, str]:
    """Index of a problem -> words for it, largest gain first; with few problems, an extreme is not also the median."""
    order = gains.argsort(kind="stable")
    least, middle, most = int(order[0]), int(order[len(order) // 2]), int(order[-1])
    words = {
        middle: "median gain",
        least: "gained least" if gains[least] >= 0 else "lost most",
        most: "gained most" if gains[most] >= 0 else "lost least",
    }
    return {index: words[index] for index in dict.fromkeys((most, middle, least))}


def _responses(evaluation: Evaluation, problems: list[str], home: Home) -> dict[str, list[Response]]:
    import pyarrow.parquet as pq

    file = evaluation.plan.evaluations[evaluation.after].folder(home).export / "samples.parquet"
    protocol = evaluation.plan.cell.recipe.evaluate
    table = with_current_columns(pq.read_table(file, filters=[("problem_id", "in", problems)]), protocol)
    found: dict[str, list[Response]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: not row["greedy"]):
        if not row["greedy"] and (row["sample"] >= _SAMPLES or row["temperature"] != protocol.temperature):
            continue
        text = row["text"] if len(row["text"]) <= _LONGEST else row["text"][:_LONGEST] + " ..."
        found.setdefault(row["problem_id"], []).append(Response(text, row["correct"], row["greedy"]))
    return found


def sources(graph: Graph, home: Home) -> list[dict[str, Any]]:
    """Where every number comes from: stage, commit, seconds and package versions."""
    found = []
    for node in graph.stages.values():
        record = node.folder(home).record()
        origin = {} if record is None else record["provenance"]
        found.append(
            {
                "stage": node.name,
                "commit": origin.get("commit", ""),
                "seconds": str(origin["seconds"]) if origin else "not finished",
                "versions": ", ".join(f"{package} {version}" for package, version in origin.get("packages", {}).items()),
            }
        )
    return found
