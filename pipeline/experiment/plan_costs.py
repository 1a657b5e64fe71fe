"""`priorlab plan --costs`: what the stages of a sweep will cost on given devices, by the formulas of `pipeline.config.costs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.costs import GIB, Costs, Device, Utilisation
from pipeline.config.recipe import RecipeConfig
from pipeline.config.stages import EvaluateStage
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import Graph, StageNode
from pipeline.store.folders import Home


@dataclass(frozen=True)
class Assumptions:
    """`devices` per stage default to one per process; `vocabulary` defaults to the corpus's, once it is built."""

    device_name: str
    device: Device
    devices: int | None
    utilisation: Utilisation
    vocabulary: int | None


def planned_costs(graph: Graph, home: Home, assumed: Assumptions) -> list[dict[str, Any]]:
    """One entry for each kind of stage and distinct cost in the graph, with the names of the stages that share it."""
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    seen: set[str] = set()
    for plan in graph.cells:
        recipe = plan.cell.recipe
        evaluations = [(f"evaluate@{after}", node) for after, _, on_sets in plan.measurements() for node in on_sets.values()]
        for role, node in [*plan.chain.items(), *evaluations]:
            if node.fingerprint in seen or node.config.adopted is not None or not node.config.needs_devices:
                continue
            seen.add(node.fingerprint)
            vocabulary = assumed.vocabulary or _vocabulary(plan.chain["corpus"], home)
            prompt = node.config.task.max_prompt_tokens if isinstance(node.config, EvaluateStage) else recipe.task.max_prompt_tokens
            costs = node.config.costs(recipe.model, vocabulary, prompt, node.block_size)
            devices, engine = assumed.devices or node.config.processes, node.config.gpu_memory_share * assumed.device.memory
            entry = _entry(role, recipe, costs, vocabulary, devices, assumed, engine)
            known = entries.setdefault((role, repr(entry)), entry | {"stages": []})
            known["stages"].append(node.name)
    return list(entries.values())


def _vocabulary(corpus: StageNode, home: Home) -> int:
    record = corpus.folder(home).record()
    if record is None:
        raise PriorlabError(
            f"the vocabulary size is known once {corpus.name} has run; until then give --vocabulary, e.g. 151936 for Qwen3's"
        )
    return int(record["metrics"]["vocabulary"])


def _entry(
    role: str, recipe: RecipeConfig, costs: Costs, vocabulary: int, devices: int, assumed: Assumptions, engine: float
) -> dict[str, Any]:
    """`engine`: bytes per device that vLLM gets for weights and cache; sequences that do not fit the cache wait."""
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
