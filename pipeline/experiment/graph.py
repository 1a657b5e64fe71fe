"""From cells to stages: a cell is a short chain, and equal stages of different cells are one stage.

    corpus -> pretrain -> midtrain -> sft -> rl
       |         |           |         |      |
       +---> evaluate    evaluate  evaluate evaluate

`midtrain`, `sft` and `rl` may be left out. Mid-training can have a corpus of its own, which takes the tokenizer of the first. Each
evaluation is one stage per evaluation set, so that a further set runs nothing else again. All look at the first corpus's held-out
text, so that perplexities compare. RL may start from an intermediate checkpoint of pre-training.

Equal means equal fingerprint: a corpus is shared by all priors, a pre-training by all RL settings on top of it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pipeline.config.recipe import RecipeConfig
from pipeline.config.stages import KINDS, CorpusStage, EvaluateStage, MidtrainStage, PretrainStage, RLStage, SFTStage, StageConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Cell
from pipeline.experiment.fingerprint import fingerprint
from pipeline.store.folders import Home, StageFolder


@dataclass
class StageNode:
    """A stage to run: resolved config, identity, and the stages whose results it reads, by role."""

    slug: str
    config: StageConfig
    parents: dict[str, StageNode]
    labels: dict[str, Any]
    tracking: TrackingConfig
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = fingerprint(
            self.kind,
            self.config.version,
            self.config.identity(),
            {role: parent.fingerprint for role, parent in self.parents.items()},
        )

    @property
    def kind(self) -> str:
        return self.config.kind

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.slug}-{self.fingerprint[:12]}"

    @property
    def work(self) -> str:
        """Its size, for people."""
        return self.config.work(self.block_size)

    @property
    def block_size(self) -> int:
        """Tokens of a block of the corpus that it reads; 0 if it reads none."""
        corpus = self.parents.get("corpus")
        return corpus.config.corpus.block_size if corpus is not None and isinstance(corpus.config, CorpusStage) else 0

    def folder(self, home: Home) -> StageFolder:
        return home.stage(self.kind, self.slug, self.fingerprint)

    def spec(self, home: Home, sweep: str) -> dict[str, Any]:
        """Everything the stage process needs; parents by folder and fingerprint, never "the latest"."""
        return {
            "kind": self.kind,
            "slug": self.slug,
            "fingerprint": self.fingerprint,
            "recipe_version": self.config.version,
            "identity": self.config.identity(),
            "config": self.config.model_dump(mode="json"),
            "parents": {
                role: {"kind": parent.kind, "fingerprint": parent.fingerprint, "folder": str(parent.folder(home).path)}
                for role, parent in self.parents.items()
            },
            "labels": self.labels,
            "sweep": sweep,
            "tracking": self.tracking.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class CellPlan:
    """A cell and its stages by role.

    `evaluations` maps what was evaluated (pretrain, midtrain, sft, rl) to the stage that did; where RL starts before pre-training ends
    (`rl.start`), pre-training is evaluated there, and the cell leaves out what comes later.

    `milestones` are the evaluations of intermediate checkpoints, by role and step. Both are on the recipe's first evaluation set;
    `further` has those on its other sets, by role and step (None for the last) and then by set.
    """

    cell: Cell
    chain: dict[str, StageNode]
    evaluations: dict[str, StageNode]
    milestones: dict[tuple[str, int], StageNode] = field(default_factory=dict)
    further: dict[tuple[str, int | None], dict[str, StageNode]] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The role of the checkpoint that RL starts from, and whose evaluation is the "before" of every gain."""
        return next(role for role in ("sft", "midtrain", "pretrain") if role in self.chain)

    def measurements(self) -> Iterator[tuple[str, int | None, dict[str, StageNode]]]:
        """What is evaluated, in training order: role, step (None for the last), and the evaluating stages by evaluation set."""
        first, start = next(iter(self.cell.recipe.evaluation_sets)), self.cell.recipe.start_step
        for role, last in self.evaluations.items():
            for (of, step), node in self.milestones.items():
                if of == role:
                    yield role, step, {first: node} | self.further.get((role, step), {})
            yield role, None, {first: last} | self.further.get((role, start if role == "pretrain" else None), {})

    def stages(self) -> list[StageNode]:
        """All, parents first."""
        further = [node for of_sets in self.further.values() for node in of_sets.values()]
        return [*self.chain.values(), *self.evaluations.values(), *self.milestones.values(), *further]


@dataclass(frozen=True)
class Graph:
    cells: list[CellPlan]
    stages: dict[str, StageNode]
    """By fingerprint, parents before children, early cells first."""

    def descendants(self, node: StageNode) -> set[str]:
        """Fingerprints of all stages computed, directly or not, from `node`."""
        found = {node.fingerprint}
        for other in self.stages.values():  # parents come first, so one pass is enough
            if any(parent.fingerprint in found for parent in other.parents.values()):
                found.add(other.fingerprint)
        return found - {node.fingerprint}

    def ancestors(self, node: StageNode) -> list[StageNode]:
        """All stages that `node` is computed from, directly or not."""
        found: dict[str, StageNode] = {}
        for parent in node.parents.values():
            found |= {ancestor.fingerprint: ancestor for ancestor in [*self.ancestors(parent), parent]}
        return list(found.values())


def build_graph(cells: Iterable[Cell]) -> Graph:
    """Plan all cells; stages with equal fingerprints are merged into the first one met."""
    stages: dict[str, StageNode] = {}
    return Graph([_plan(cell, stages) for cell in cells], stages)


def check_cells_differ(graph: Graph) -> None:
    """Raises `PriorlabError` if two cells are the same run, which statistics would count twice: all their stages are equal."""
    first: dict[tuple[str, ...], str] = {}
    for plan in graph.cells:
        other = first.setdefault(tuple(node.fingerprint for node in plan.stages()), plan.cell.id)
        if other != plan.cell.id:
            raise PriorlabError(
                f"cells {other!r} and {plan.cell.id!r} are the same run: their differences affect no result; leave one out"
            )


def _plan(cell: Cell, stages: dict[str, StageNode]) -> CellPlan:
    """The stages of a cell: those of equal fingerprint already in `stages`, or new ones, which are added to it."""
    recipe, seed = cell.recipe, cell.recipe.seed
    told = _labels(recipe)

    further: dict[tuple[str, int | None], dict[str, StageNode]] = {}

    def add(config: StageConfig, slug: str, labels: dict[str, Any] | None = None, **parents: StageNode) -> StageNode:
        node = StageNode(_slug(slug), config, parents, told[config.kind] | (labels or {}), recipe.tracking)
        return stages.setdefault(node.fingerprint, node)

    def evaluated(checkpoint: StageNode, name: str, step: int | None = None) -> StageNode:
        """The stage on the first set; those on others are put into `further`."""
        texts = [recipe.corpus, *([recipe.midtrain_corpus] if recipe.midtrain_corpus is not None else [])]
        tuned = recipe.sft is not None and recipe.sft.source is None and checkpoint.kind in ("sft", "rl")
        read = {"corpus": tuned or any(text.uses_task for text in texts), "rl": checkpoint.kind == "rl"}
        on_sets = {}
        for of_set, (task, protocol) in recipe.evaluation_sets.items():
            slug = f"{name}-{checkpoint.kind}" + ("" if step is None else f"-{step}") + (f"-{of_set}" if recipe.evaluate.sets else "")
            seen = () if recipe.task.keeps_apart(task) else tuple(split for split, is_seen in read.items() if is_seen)
            trained_on = recipe.task if seen else None
            config = EvaluateStage(task=task, evaluate=protocol, step=step, trained_on=trained_on, trained_splits=seen)
            on_sets[of_set] = add(config, slug, {"task": of_set}, checkpoint=checkpoint, corpus=corpus)
        first, *others = on_sets
        if others:
            further[checkpoint.kind, step] = {of_set: on_sets[of_set] for of_set in others}
        return on_sets[first]

    slug = f"{recipe.prior.name}-s{seed}"
    start = recipe.start_step
    corpus = add(CorpusStage(task=recipe.task, corpus=recipe.corpus), recipe.task.name)
    base = add(PretrainStage(model=recipe.model, prior=recipe.prior, pretrain=recipe.pretrain, seed=seed), slug, corpus=corpus)
    chain, evaluations = {"corpus": corpus, "pretrain": base}, {"pretrain": evaluated(base, slug, start)}
    along = [("pretrain", base, slug, [step for step in recipe.pretrain.milestones if start is None or step < start])]
    if recipe.midtrain is not None:
        text, own = corpus, recipe.midtrain.prior
        if recipe.midtrain_corpus is not None:
            mixture = CorpusStage(task=recipe.task, corpus=recipe.midtrain_corpus)
            text = chain["midtrain-corpus"] = add(mixture, f"{recipe.task.name}-midtrain", tokenizer=corpus)
        slug = slug if own is None else f"{recipe.prior.name}-{own.name}-s{seed}"
        later = MidtrainStage(
            prior=recipe.midtrain_prior, midtrain=recipe.midtrain, seed=seed, checkpoint_temperature=recipe.prior.temperature
        )
        base = chain["midtrain"] = add(later, slug, checkpoint=base, corpus=text)
        evaluations["midtrain"] = evaluated(base, slug)
        along.append(("midtrain", base, slug, recipe.midtrain.milestones))
    if recipe.sft is not None:
        before = recipe.prior if recipe.midtrain is None else recipe.midtrain_prior
        tuned = SFTStage(task=recipe.task, sft=recipe.sft, seed=seed, checkpoint_temperature=before.temperature)
        base = chain["sft"] = add(tuned, slug, checkpoint=base)
        evaluations["sft"] = evaluated(base, slug)
        along.append(("sft", base, slug, recipe.sft.milestones))
    if recipe.rl is not None:
        slug += "" if start is None else f"-from-{start}"
        chain["rl"] = add(RLStage(task=recipe.task, rl=recipe.rl, seed=seed, step=start), slug, checkpoint=base)
        evaluations["rl"] = evaluated(chain["rl"], slug)
    milestones = {(role, step): evaluated(trained, name, step) for role, trained, name, steps in along for step in steps}
    return CellPlan(cell, chain, evaluations, milestones, further)


def graph_from_specs(specs: Iterable[dict[str, Any]], target: str) -> Graph:
    """The stages on disk as a graph without cells, parents before children.

    Raises `PriorlabError` if `target` (a fingerprint) cannot be rebuilt from its spec; others that cannot are left out.
    """
    by_fingerprint = {spec["fingerprint"]: spec for spec in specs}
    stages: dict[str, StageNode] = {}

    def add(fingerprint_: str) -> StageNode:
        if fingerprint_ in stages:
            return stages[fingerprint_]
        spec = by_fingerprint.get(fingerprint_)
        if spec is None:
            raise PriorlabError(f"a stage with fingerprint {fingerprint_[:12]} is referred to, but its folder is gone")
        parents = {role: add(parent["fingerprint"]) for role, parent in spec["parents"].items()}
        other = f"{spec['kind']}/{spec['slug']}-{fingerprint_[:12]} was made by another version of priorlab"
        try:
            config = KINDS[spec["kind"]].model_validate(spec["config"])
            tracking = TrackingConfig.model_validate(spec["tracking"])
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise PriorlabError(
                f"{other}, or its spec.json was edited: {where} is not valid there; run its sweep again to rebuild it"
            ) from error
        node = StageNode(_slug(spec["slug"]), config, parents, spec["labels"], tracking)
        if node.fingerprint != fingerprint_:
            raise PriorlabError(
                f"{other} (this one would give it the fingerprint {node.fingerprint[:12]}); run its sweep again to rebuild it"
            )
        return stages.setdefault(fingerprint_, node)

    add(target)
    for known in by_fingerprint:
        with contextlib.suppress(PriorlabError):  # made by another version, or their parent was removed
            add(known)
    return Graph([], stages)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:48].strip("._-") or "stage"


def _labels(recipe: RecipeConfig) -> dict[str, dict[str, Any]]:
    """By kind of stage, flat coordinates for W&B: what a user groups and filters by."""
    text: dict[str, Any] = {"task": recipe.task.name, "recipe": recipe.name}
    prior = {"name": recipe.prior.name, "kind": recipe.prior.kind} | recipe.prior.knobs()
    model = text | {f"prior.{name}": value for name, value in prior.items()}
    if recipe.prior.schedule:
        model["prior.schedule"] = [waypoint.at for waypoint in recipe.prior.schedule]
    if recipe.prior.temperature != 1:
        model["prior.temperature"] = recipe.prior.temperature
    model |= {"model": recipe.model.name, "seed": recipe.seed}
    if recipe.pretrain.adopted is not None:
        model["adopted"] = recipe.pretrain.adopted[:19]
    later = model if recipe.midtrain is None else model | {"midtrain.prior.name": recipe.midtrain_prior.name}
    tuned = later if recipe.sft is None else later | {"sft.prior.name": recipe.sft.prior.name}
    policy = tuned if recipe.rl is None else tuned | {
        "exploration": recipe.rl.exploration.name, "advantage": recipe.rl.advantage.name,
    }  # fmt: skip
    if recipe.start_step is not None and recipe.rl is not None:
        policy = policy | {"rl.start": recipe.rl.start}
    return {"corpus": text, "pretrain": model, "midtrain": later, "sft": tuned, "rl": policy, "evaluate": model}
