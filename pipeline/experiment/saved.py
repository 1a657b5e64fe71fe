"""A sweep's definition in its folder: written when it starts, and read back to inspect or continue it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.recipe import RecipeConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Cell, Sweep
from pipeline.experiment.fingerprint import drift
from pipeline.experiment.graph import CellPlan, Graph
from pipeline.store.files import write_text_atomically
from pipeline.store.folders import NAME, Home

FILES = ("sweep.yaml", "cells.jsonl")
"""The definition, and the cells that follow from it with their stages."""


def save_definition(sweep: Sweep, graph: Graph, home: Home) -> None:
    """Write `FILES` into the sweep's folder, in place of what an earlier start wrote there."""
    folder = home.sweep(sweep.name)
    cells = "".join(json.dumps(_cell_row(plan)) + "\n" for plan in graph.cells)
    for name, text in zip(FILES, (sweep.as_yaml(), cells), strict=True):
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_text_atomically(file, text)


def _cell_row(plan: CellPlan) -> dict[str, Any]:
    return {
        "cell": plan.cell.id,
        "coordinates": plan.cell.coordinates,
        "stages": [node.name for node in plan.stages()],
        "recipe": plan.cell.recipe.model_dump(mode="json"),
    }


def saved_sweep(name: str, home: Home) -> Sweep | None:
    """A sweep as it was last started, with the recipes its cells had then; None if it never was."""
    if not NAME.fullmatch(name):  # the name of a stage, or a path
        return None
    folder = home.sweep(name)
    if not any((folder / file).exists() for file in FILES):
        return None
    tree, rows = definition(folder)
    try:
        cells = tuple(Cell(row["cell"], row["coordinates"], RecipeConfig.model_validate(row["recipe"])) for row in rows)
        contrasts = tuple((setting, reference) for setting, reference in tree.get("contrasts", ()))
        return Sweep(name, tree["axes"], tree["recipe"], str(tree["description"] or ""), contrasts, cells)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def definition(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a sweep's folder says: its definition, and a row for each of its cells. Raises `PriorlabError` unless all of it is there."""
    try:
        tree = yaml.safe_load((folder / FILES[0]).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / FILES[1]).read_text(encoding="utf-8").splitlines()]
        if not isinstance(tree, dict):
            raise ValueError(f"{FILES[0]} holds no definition")
        planned = math.prod(len(values) for values in tree["axes"].values())
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error
    if len(rows) != planned:
        raise _damaged(folder, f"{FILES[1]} has {len(rows)} cells of {planned}")
    return tree, rows


def _damaged(folder: Path, why: object) -> PriorlabError:
    return PriorlabError(
        f"{folder} is damaged, or from another version of priorlab ({why}); start it again with its `priorlab sweep` command"
    )


def known_sweep(name: str, home: Home) -> Sweep:
    """`saved_sweep`, or a `PriorlabError` that lists the known sweeps."""
    saved = saved_sweep(name, home)
    if saved is None:
        known = sorted(path.parent.name for path in home.path.glob("sweeps/*/sweep.yaml"))
        raise PriorlabError(f"no sweep {name!r} below {home.path}; there are: {', '.join(known) or 'none'}")
    return saved


def redefinition(sweep: Sweep, home: Home) -> list[str]:
    """How a sweep differs from when it was last started; empty if it is new or the same."""
    try:
        saved = saved_sweep(sweep.name, home)
    except PriorlabError as error:
        return [str(error)]
    if saved is None:
        return []
    before = {cell.id: cell.recipe for cell in saved.cells()}
    after = {cell.id: cell.recipe for cell in sweep.cells()}
    changes = [f"cell {name} is new" for name in after.keys() - before.keys()]
    changes += [f"cell {name} is no longer part of it" for name in before.keys() - after.keys()]
    changes += ["its contrasts are not those declared before"] if saved.contrasts != sweep.contrasts else []
    fields: dict[str, None] = {}  # ordered, each change once however many cells share it
    for name in after.keys() & before.keys():
        if before[name] != after[name]:
            fields |= dict.fromkeys(drift(before[name].model_dump(mode="json"), after[name].model_dump(mode="json")))
    return sorted(changes) + list(fields)
