"""From cells to stages: a cell is a short chain, and equal stages of different cells are one stage.

    corpus -> pretrain -> midtrain -> rl
       |         |           |         |
       +---> evaluate    evaluate   evaluate

`midtrain` may be left out, and so may `rl`. Mid-training can have a corpus of its own, which takes the tokenizer of the first. All
evaluations look at the first corpus's held-out text, so that perplexities compare.

Equal means equal fingerprint: a corpus is shared by all priors, a pre-training by all RL settings on top of it.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pipeline.config.recipe import (
    RECIPE_VERSIONS,
    STAGE_CONFIGS,
    PretrainStage,
    RecipeConfig,
    StageConfig,
    TrackingConfig,
)
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Cell
from pipeline.experiment.fingerprint import fingerprint
from pipeline.store.folders import Home, StageFolder


@dataclass
class StageNode:
    """A stage to run: resolved config, identity, and the stages whose results it reads, by role."""

    kind: str
    slug: str
    config: StageConfig
    parents: dict[str, StageNode]
    labels: dict[str, Any]
    tracking: TrackingConfig
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = fingerprint(
            self.kind,
            RECIPE_VERSIONS[self.kind],
            self.config.identity(),
            {role: parent.fingerprint for role, parent in self.parents.items()},
        )

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.slug}-{self.fingerprint[:12]}"

    @property
    def adopted(self) -> str | None:
        """Digest of the checkpoint that was brought in as this stage's result."""
        return self.config.pretrain.adopted if isinstance(self.config, PretrainStage) else None

    def folder(self, home: Home) -> StageFolder:
        return home.stage(self.kind, self.slug, self.fingerprint)

    def spec(self, home: Home, sweep: str) -> dict[str, Any]:
        """Everything the stage process needs; parents by folder and fingerprint, never "the latest"."""
        return {
            "kind": self.kind,
            "slug": self.slug,
            "fingerprint": self.fingerprint,
            "recipe_version": RECIPE_VERSIONS[self.kind],
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
    """A cell and its stages by role. `evaluations` maps what was evaluated (pretrain, midtrain, rl) to the stage that did.

    `milestones` are the evaluations of checkpoints along the way, by role and step.
    """

    cell: Cell
    chain: dict[str, StageNode]
    evaluations: dict[str, StageNode]
    milestones: dict[tuple[str, int], StageNode] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The role of the checkpoint that RL starts from, and whose evaluation is the "before" of every gain."""
        return "midtrain" if "midtrain" in self.chain else "pretrain"

    def stages(self) -> list[StageNode]:
        return [*self.chain.values(), *self.evaluations.values(), *self.milestones.values()]


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
    met: dict[tuple[Any, ...], StageNode] = {}
    plans = []
    for cell in cells:
        recipe, prior, seed = cell.recipe, cell.recipe.prior.name, cell.recipe.seed
        add = functools.partial(_merge, stages, met, recipe)
        corpus = add("corpus", recipe.task.name, {"task": recipe.task, "corpus": recipe.corpus})
        learned = {"model": recipe.model, "prior": recipe.prior, "pretrain": recipe.pretrain, "seed": seed}
        pretrain = add("pretrain", f"{prior}-s{seed}", learned, corpus=corpus)
        protocol = {"task": recipe.task, "evaluate": recipe.evaluate}
        chain = {"corpus": corpus, "pretrain": pretrain}
        evaluations = {"pretrain": add("evaluate", f"{prior}-s{seed}-pretrain", protocol, checkpoint=pretrain, corpus=corpus)}
        base, slug = pretrain, f"{prior}-s{seed}"
        if recipe.midtrain is not None:
            own = recipe.midtrain
            text = corpus
            if recipe.midtrain_corpus is not None:
                mixture = {"task": recipe.task, "corpus": recipe.midtrain_corpus}
                text = chain["midtrain-corpus"] = add("corpus", f"{recipe.task.name}-midtrain", mixture, tokenizer=corpus)
            slug = slug if own.prior is None else f"{prior}-{own.prior.name}-s{seed}"
            learned = {"prior": recipe.midtrain_prior, "midtrain": own, "seed": seed}
            base = chain["midtrain"] = add("midtrain", slug, learned, checkpoint=pretrain, corpus=text)
            evaluations["midtrain"] = add("evaluate", f"{slug}-midtrain", protocol, checkpoint=base, corpus=corpus)
        if recipe.rl is not None:
            policy = {"task": recipe.task, "rl": recipe.rl, "seed": seed}
            chain["rl"] = add("rl", slug, policy, checkpoint=base)
            evaluations["rl"] = add("evaluate", f"{slug}-rl", protocol, checkpoint=chain["rl"], corpus=corpus)
        milestones = {}
        for role, settings in (("pretrain", recipe.pretrain), ("midtrain", recipe.midtrain)):
            for step in [] if settings is None else settings.milestones:
                name, whole = f"{evaluations[role].slug}-{step}", chain[role]
                milestones[role, step] = add("evaluate", name, protocol | {"step": step}, checkpoint=whole, corpus=corpus)
        plans.append(CellPlan(cell, chain, evaluations, milestones))
    return Graph(plans, stages)


def _merge(
    stages: dict[str, StageNode],
    met: dict[tuple[Any, ...], StageNode],
    recipe: RecipeConfig,
    kind: str,
    slug: str,
    parts: dict[str, Any],
    **parents: StageNode,
) -> StageNode:
    """The stage with this identity: the one already planned, or a new one.

    Cells share the objects of parts that are equal in them, so most stages are known without asking for their fingerprint.
    """
    known = (part if isinstance(part, int) else id(part) for part in parts.values())
    key = (kind, *known, *(parent.fingerprint for parent in parents.values()))
    if key not in met:
        config = STAGE_CONFIGS[kind](**parts)
        node = StageNode(kind, _slug(slug), config, parents, _labels(recipe, kind), recipe.tracking)
        met[key] = stages.setdefault(node.fingerprint, node)
    return met[key]


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
        config = STAGE_CONFIGS[spec["kind"]].model_validate(spec["config"])
        tracking = TrackingConfig.model_validate(spec["tracking"])
        node = StageNode(spec["kind"], _slug(spec["slug"]), config, parents, spec["labels"], tracking)
        if node.fingerprint != fingerprint_:
            raise PriorlabError(
                f"{spec['kind']}/{spec['slug']}-{fingerprint_[:12]} was made by another version of priorlab (this one would give "
                f"it the fingerprint {node.fingerprint[:12]}); run its sweep again to build it anew"
            )
        return stages.setdefault(fingerprint_, node)

    add(target)
    for known in by_fingerprint:
        with contextlib.suppress(PriorlabError, ValidationError):  # made by another version, or their parent was removed
            add(known)
    return Graph([], stages)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:48].strip("._-") or "stage"


def _labels(recipe: RecipeConfig, kind: str) -> dict[str, Any]:
    """Flat coordinates for W&B: what a user groups and filters by."""
    labels: dict[str, Any] = {"task": recipe.task.name, "recipe": recipe.name}
    if kind != "corpus":
        prior = recipe.prior
        labels |= {
            "prior.name": prior.name,
            "prior.beta": prior.beta,
            "prior.lambda_head": prior.lambda_head,
            "prior.lambda_tail": prior.lambda_tail,
            "prior.k": prior.k if prior.rank_aware else 0,
            "prior.form": prior.form,
            **({"prior.schedule": [waypoint.at for waypoint in prior.schedule]} if prior.schedule else {}),
            "model": recipe.model.name,
            "seed": recipe.seed,
        }
        if kind in ("midtrain", "rl") and recipe.midtrain is not None:
            labels["midtrain.prior.name"] = recipe.midtrain_prior.name
        if kind == "rl" and recipe.rl is not None:
            labels["exploration"] = recipe.rl.exploration.name
        if recipe.pretrain.adopted is not None:
            labels["adopted"] = recipe.pretrain.adopted[:19]
    return labels
