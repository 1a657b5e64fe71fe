"""`priorlab plan --costs`: what the stages of a sweep will cost on given devices, by the formulas of `pipeline.config.costs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.text import Text

from pipeline.cli.terminal import plain_table, print_json, print_wide
from pipeline.config.costs import GIB, Costs, Device, Utilisation, evaluation_costs, rl_costs, training_costs
from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.recipe import CorpusStage, RecipeConfig
from pipeline.config.training import NextTokenTraining, RLConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import CellPlan, Graph, StageNode
from pipeline.run.launch import processes_of
from pipeline.store.folders import Home


@dataclass(frozen=True)
class Assumptions:
    """`devices` are per stage, one a process, unless given; `vocabulary` is that of the corpus, once it is made."""

    device_name: str
    device: Device
    devices: int | None
    utilisation: Utilisation
    vocabulary: int | None


def planned_costs(graph: Graph, home: Home, assumed: Assumptions) -> list[dict[str, Any]]:
    """One entry for each kind of stage and each cost among the graph's stages, with the names of those that cost as much."""
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    seen: set[str] = set()
    for plan in graph.cells:
        for role, node in _trained_and_evaluated(plan):
            if node.fingerprint in seen or node.adopted is not None:
                continue
            seen.add(node.fingerprint)
            vocabulary = assumed.vocabulary or _vocabulary(plan.chain["corpus"], home)
            costs = _costs(plan.cell.recipe, node, vocabulary)
            devices = assumed.devices or processes_of(node)
            share = getattr(getattr(node.config, node.kind), "gpu_memory_share", 1.0)
            entry = _entry(role, plan.cell.recipe, costs, vocabulary, devices, assumed, share * assumed.device.memory)
            known = entries.setdefault((role, repr(entry)), entry | {"stages": []})
            known["stages"].append(node.name)
    return list(entries.values())


def _trained_and_evaluated(plan: CellPlan) -> list[tuple[str, StageNode]]:
    trained = [(role, node) for role, node in plan.chain.items() if role in ("pretrain", "midtrain", "rl")]
    return trained + [(f"evaluate@{after}", node) for after, node in plan.evaluations.items()]


def _vocabulary(corpus: StageNode, home: Home) -> int:
    record = corpus.folder(home).record()
    if record is None:
        raise PriorlabError(
            f"how many tokens the vocabulary has is known once {corpus.name} has run; until then give --vocabulary, "
            "e.g. 151936 for Qwen3's"
        )
    return int(record["metrics"]["vocabulary"])


def _costs(recipe: RecipeConfig, node: StageNode, vocabulary: int) -> Costs:
    settings = getattr(node.config, node.kind)
    if isinstance(settings, NextTokenTraining):
        return training_costs(recipe.model, vocabulary, settings, _block_size(node))
    if isinstance(settings, RLConfig):
        return rl_costs(recipe.model, vocabulary, settings, recipe.task.max_prompt_tokens)
    assert isinstance(settings, EvaluateConfig)
    return evaluation_costs(recipe.model, vocabulary, settings, recipe.task.max_prompt_tokens, _block_size(node))


def _block_size(node: StageNode) -> int:
    corpus = node.parents["corpus"].config
    assert isinstance(corpus, CorpusStage)
    return corpus.corpus.block_size


def _entry(
    role: str, recipe: RecipeConfig, costs: Costs, vocabulary: int, devices: int, assumed: Assumptions, engine: float
) -> dict[str, Any]:
    """`engine`: bytes of a device that vLLM is given, for weights and cache; what does not fit into the cache waits."""
    counts, memory = recipe.model.parameters(vocabulary), dict(costs.memory)
    if "kv cache" in memory:
        room = engine - memory.get("engine", memory["parameters"])
        memory["kv cache"] = min(memory["kv cache"], room) if room > 0 else memory["kv cache"]
    return {
        "stage": role,
        "parameters": counts.total,
        "active_parameters": counts.active,
        "vocabulary": vocabulary,
        "tokens": costs.tokens,
        "steps": costs.steps,
        "flops": costs.flops,
        "device": assumed.device_name,
        "devices": devices,
        "hours": costs.hours(assumed.device, devices, assumed.utilisation),
        "memory_gib": {name: size / GIB for name, size in memory.items()},
        "fits": sum(memory.values()) <= assumed.device.memory,
        "stored_gib": costs.stored / GIB,
    }


def show_costs(entries: list[dict[str, Any]], *, as_json: bool) -> None:
    """What each stage is, what it takes in all, and what of each device."""
    if as_json:
        print_json(entries)
        return
    memory = "memory per device (GiB)"
    table = plain_table("stage", "parameters", "tokens", "steps", "FLOPs", "hours", memory, "disk", wrapped=(memory,))
    for entry in entries:
        count, held = len(entry["stages"]), sum(entry["memory_gib"].values())
        parts = ", ".join(f"{name} {size:.3g}" for name, size in entry["memory_gib"].items() if size >= 0.01 * held)
        table.add_row(
            entry["stage"] if count == 1 else f"{count} x {entry['stage']}",
            f"{_short(entry['parameters'])} ({_short(entry['active_parameters'])} active)",
            _short(entry["tokens"]),
            f"{entry['steps']:,}",
            f"{entry['flops']:.2e}",
            f"{entry['hours']:,.1f} on {entry['devices']} {entry['device']}",
            Text(f"{held:,.1f}{'' if entry['fits'] else ', more than there is'}: {parts}"),
            f"{entry['stored_gib']:,.1f} GiB",
        )
    print_wide(table)


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"
