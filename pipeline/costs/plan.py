"""`priorlab plan --costs` and `--launches`: what the stages of a sweep will cost on given devices, and the fastest launches."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from pipeline.config.recipe import RecipeConfig
from pipeline.config.rl import RLConfig
from pipeline.config.stages import EvaluateStage, RLStage, StageConfig
from pipeline.costs.communication import Fabric
from pipeline.costs.devices import Device
from pipeline.costs.interruptions import Interruptions
from pipeline.costs.stages import GIB, Costs, Utilisation, costs_of
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import Graph, StageNode
from pipeline.store.folders import Home

_ROOM = 0.9
"""Share of a device's memory that `--launches` plans with: allocators hold more than is in use."""


@dataclass(frozen=True)
class Assumptions:
    """`devices` per training stage default to one per process; `vocabulary` to the corpus's, once it is built; `per_node`, devices of a
    node, to the recipe's cluster, or 8 with other numbers of devices than its.
    """

    device_name: str
    device: Device
    devices: int | None
    utilisation: Utilisation
    vocabulary: int | None
    per_node: int | None = None
    interruptions: Interruptions = field(default_factory=Interruptions)
    price: float | None = None
    """Per device and hour."""


@dataclass(frozen=True)
class _Planned:
    """A stage with what its costs depend on besides its config."""

    role: str
    recipe: RecipeConfig
    config: StageConfig
    vocabulary: int
    block_size: int


def planned_costs(graph: Graph, home: Home, assumed: Assumptions) -> list[dict[str, Any]]:
    """One entry for each kind of stage and distinct cost in the graph, with the names of the stages that share it."""
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    for node, planned in _stages(graph, home, assumed):
        entry = _entry(planned, assumed)
        known = entries.setdefault((planned.role, repr(entry)), entry | {"stages": []})
        known["stages"].append(node.name)
    return list(entries.values())


def best_launches(
    graph: Graph, home: Home, assumed: Assumptions, factors: Sequence[float] = (0.25, 0.5, 1, 2, 4)
) -> list[dict[str, Any]]:
    """For each distinct training stage, entries as of `planned_costs`: its own launch (`own`), then for its devices times each factor
    the fastest launch that fits.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for _, planned in _stages(graph, home, assumed):
        if planned.config.launch is None:
            continue
        own = _entry(planned, assumed) | {"own": True}
        if repr(own) not in found:
            counts = sorted({max(1, round(own["devices"] * factor)) for factor in factors})
            ways = [_fastest(planned, devices, assumed) for devices in counts]
            found[repr(own)] = [own, *(way | {"own": False} for way in ways if way is not None)]
    return [row for rows in found.values() for row in rows]


def _fastest(planned: _Planned, devices: int, assumed: Assumptions) -> dict[str, Any] | None:
    """Of all launches on so many devices that leave some memory free; None if none does."""
    ways = itertools.chain.from_iterable(_with_engines(way, assumed) for way in _ways(planned, devices))
    entries = (_entry(way, assumed) for way in ways)
    fitting = [entry for entry in entries if entry["fits"] and entry["memory"] <= _ROOM * assumed.device.memory]
    return min(fitting, key=lambda entry: (entry["expected_hours"], entry["zero_stage"], -entry["micro_batch"]), default=None)


def _ways(planned: _Planned, devices: int) -> Iterator[_Planned]:
    """The stage with every launch on so many devices that its batch can be split by."""
    launch = planned.config.launch
    assert launch is not None
    below_3 = launch.zero.model_copy(update={"zero_hpz_partition_size": None})
    for stage, checkpointing, power in itertools.product((0, 1, 2, 3), (False, True), range(9)):
        with contextlib.suppress(ValueError):  # the batch cannot be split this way, or the dtype needs a higher stage
            way = planned.config.launched(
                processes=devices, zero_stage=stage, zero=launch.zero if stage == 3 else below_3,
                gradient_checkpointing=checkpointing, micro_batch=2**power,
            )  # fmt: skip
            yield replace(planned, config=way)


def _with_engines(planned: _Planned, assumed: Assumptions) -> Iterator[_Planned]:
    """An RL launch once per engine that fits beside it, with the memory share left, or less if that is enough; others unchanged."""
    stage = planned.config
    if not isinstance(stage, RLStage) or stage.rl.rollouts != "vllm":
        yield planned
        return
    for parts, sleep in itertools.product((1, 2, 4, 8), (False, True)):
        with contextlib.suppress(ValueError):  # the model, validation or processes cannot be split that way, or memory is short
            planned.recipe.model.check_tensor_parallel(parts)
            engine = {"engine": {"tensor_parallel": parts, "sleep": sleep}}
            costs = _costs(_with_rl(planned, engine))
            assert costs.sampling is not None
            left = costs.left_for_engine(_ROOM * assumed.device.memory)
            wanted, step = costs.sampling.weights + costs.sampling.wanted, assumed.device.memory / 20
            share = min(math.floor(left / step), math.ceil(wanted / step)) / 20
            yield _with_rl(planned, engine | {"gpu_memory_share": share})


def _with_rl(planned: _Planned, changes: dict[str, Any]) -> _Planned:
    """With other settings of RL. Raises `ValueError` if they do not go together."""
    assert isinstance(planned.config, RLStage)
    settings = RLConfig.model_validate(planned.config.rl.model_dump() | changes)
    return replace(planned, config=planned.config.model_copy(update={"rl": settings}))


def _stages(graph: Graph, home: Home, assumed: Assumptions) -> Iterator[tuple[StageNode, _Planned]]:
    """Each stage of the graph that needs devices, once; with the number of devices that is assumed."""
    seen: set[str] = set()
    for plan in graph.cells:
        evaluations = [(f"evaluate@{after}", node) for after, _, on_sets in plan.measurements() for node in on_sets.values()]
        for role, node in [*plan.chain.items(), *evaluations]:
            if node.fingerprint in seen or node.config.adopted is not None or not node.config.needs_devices:
                continue
            seen.add(node.fingerprint)
            vocabulary = assumed.vocabulary or _vocabulary(plan.chain["corpus"], home)
            config = node.config
            if assumed.devices is not None and config.launch is not None:
                together = config.rl.processes_per_engine if isinstance(config, RLStage) else 1
                if assumed.devices % together:
                    raise PriorlabError(
                        f"--devices is {assumed.devices}, but an engine of {node.name} takes {together}; give a multiple, "
                        "or another rl.engine.tensor_parallel"
                    )
                config = _split_over(assumed.devices, config, node.name)
            yield node, _Planned(role, plan.cell.recipe, config, vocabulary, node.block_size)


def _split_over(devices: int, config: StageConfig, name: str) -> StageConfig:
    """The stage on this many devices, with the largest micro-batch, no larger than its own, that divides its batch."""
    assert config.launch is not None
    reason = ""
    for micro_batch in range(config.launch.micro_batch, 0, -1):
        try:
            return config.launched(processes=devices, micro_batch=micro_batch)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
    raise PriorlabError(f"--devices is {devices}, over which {name} cannot be split: {reason}")


def _vocabulary(corpus: StageNode, home: Home) -> int:
    record = corpus.folder(home).record()
    if record is None:
        raise PriorlabError(
            f"the vocabulary size is known once {corpus.name} has run; until then give --vocabulary, e.g. 20 for Countdown's "
            "characters or 151936 for Qwen3's tokenizer"
        )
    return int(record["metrics"]["vocabulary"])


def _costs(planned: _Planned) -> Costs:
    config, recipe = planned.config, planned.recipe
    prompt = (config if isinstance(config, EvaluateStage) else recipe).task.max_prompt_tokens
    return costs_of(config, recipe.model, planned.vocabulary, prompt, planned.block_size)


def _entry(planned: _Planned, assumed: Assumptions) -> dict[str, Any]:
    config, recipe = planned.config, planned.recipe
    costs = _costs(planned)
    devices, launch = config.processes, config.launch
    fabric = Fabric(assumed.device, assumed.per_node or _devices_of_a_node(planned))
    counts = recipe.model.parameters(planned.vocabulary)
    computing, waiting = (measure(fabric, devices, assumed.utilisation) for measure in (costs.computing, costs.waiting))
    hours = computing + waiting
    entry: dict[str, Any] = {
        "stage": planned.role,
        "parameters": counts.total,
        "active_parameters": counts.active,
        "vocabulary": planned.vocabulary,
        "tokens": costs.tokens,
        "steps": costs.steps,
        "flops": costs.flops,
        "device": assumed.device_name,
        "devices": devices,
        "computing_hours": computing,
        "sending_hours": costs.sending(fabric, devices),
        "waiting_hours": waiting,
        "hours": hours,
        "expected_hours": hours,
        "sent_gib": {f"{one.what}, {one.collective}": one.sent(devices) / GIB for one in costs.moved(assumed.device)},
        "memory_gib": {name: size / GIB for name, size in costs.memory_on(assumed.device).items()},
        "memory": costs.peak(assumed.device),
        "fits": costs.fits(assumed.device),
        "stored_gib": costs.stored / GIB,
    }
    if launch is not None:
        per_step, rates = hours / costs.steps, assumed.interruptions
        saving, failures = rates.lost(hours, launch.save_steps * per_step, costs.checkpoint, devices)
        entry |= {
            "zero_stage": launch.zero_stage,
            "micro_batch": launch.micro_batch,
            "gradient_checkpointing": launch.gradient_checkpointing,
            "save_steps": launch.save_steps,
            "best_save_steps": min(costs.steps, max(1, round(rates.best_interval(costs.checkpoint, devices) / per_step))),
            "saving_hours": saving,
            "failure_hours": failures,
            "expected_hours": hours + saving + failures,
        }
    if isinstance(config, RLStage) and config.rl.rollouts == "vllm":
        entry |= {
            "tensor_parallel": config.rl.engine.tensor_parallel,
            "sleep": config.rl.engine.sleep,
            "gpu_memory_share": config.rl.gpu_memory_share,
        }
    price = None if assumed.price is None else entry["expected_hours"] * devices * assumed.price
    return entry | {"price": price}


def _devices_of_a_node(planned: _Planned) -> int:
    """As the recipe spreads the stage, if its number of processes is the recipe's; 8 if not."""
    cluster, kind = planned.recipe.cluster, planned.config.kind
    settings = getattr(planned.recipe, kind, None)
    launch = getattr(settings, "launch", None)
    if launch is None or launch.processes != planned.config.processes:
        return 8
    return launch.processes // cluster.resources(kind).nodes if cluster.kind == "slurm" else launch.processes
