"""From YAML names and `dotted.key=value` overrides to validated configs.

A name in a config means a file: `model: nano` is `configs/model/nano.yaml`. `{use: NAME, key: value}` takes that file and changes keys.
Choosing another name, on the command line or by an axis, replaces the name and keeps the keys written beside it: with
`prior: {use: ce, k: 5}`, the override `prior=tail` means `{use: tail, k: 5}`. Groups lie at the top of a recipe, or inside one of those
(`rl.exploration`, `rl.advantage`).
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.evaluation import written_set
from pipeline.config.prior import renaming, written_waypoint
from pipeline.config.recipe import RecipeConfig
from pipeline.config.tasks import written_source
from pipeline.errors import PriorlabError
from pipeline.experiment.axes import assignments, axis_keys, check_axes, coordinate, flat_axes, label
from pipeline.experiment.config_files import bare_name, parse_yaml, read_config
from pipeline.experiment.explain import explain, unknown_key
from pipeline.store.folders import sweep_name

GROUPS = {name: name for name in ("task", "corpus", "model", "prior", "midtrain", "sft", "rl", "evaluate", "cluster")} | {
    "midtrain.corpus": "corpus", "midtrain.prior": "prior", "sft.prior": "prior",
    "rl.exploration": "exploration", "rl.advantage": "advantage",
}  # fmt: skip
"""Key of a recipe -> folder of `configs` that its names are looked up in; outer keys first."""
_LISTS = {
    "prior": ("schedule", written_waypoint, "prior"),
    "evaluate": ("sets", written_set, "task"),
    "task": ("held_out", written_source, "task"),
}
"""By group, a key with a list in which names of files may stand, what resolves one of its entries, and the group of the names."""
_SWEEP_KEYS = {"recipe", "axes", "description", "contrasts"}


@dataclass(frozen=True)
class Cell:
    """One point of a sweep: its axis values, and the recipe they make."""

    id: str
    coordinates: dict[str, Any]
    recipe: RecipeConfig


@dataclass(frozen=True)
class Sweep:
    name: str
    axes: dict[str, list[Any]]
    recipe: dict[str, Any]
    description: str = ""
    contrasts: tuple[tuple[str, str], ...] = ()
    """Declared before the sweep runs: settings and what each is compared with, by name."""
    saved_cells: tuple[Cell, ...] | None = None
    """Cells of a sweep read back from its folder: what it ran with, whatever the config files say now."""

    def cells(self) -> Iterator[Cell]:
        """The product of all axes, last axis fastest."""
        if self.saved_cells is not None:
            yield from self.saved_cells
            return
        seen: set[str] = set()
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            settings = [setting for axis, value in point.items() for setting in assignments(axis, value)]
            tree = dict(self.recipe)
            tree |= {key: copy.deepcopy(tree[key]) for key in {path.partition(".")[0] for path, _ in settings} if key in tree}
            for path, value in settings:
                assign(tree, path.split("."), value)
            where = ", ".join(f"{path}={label(value)}" for path, value in settings)
            name = "-".join(_cell_word(path, value) for path, value in settings) or "cell"
            if name in seen:
                raise PriorlabError(f"two cells of sweep {self.name!r} are called {name!r} ({where}); give their configs other names")
            seen.add(name)
            yield Cell(
                id=name,
                coordinates={axis: coordinate(axis, value) for axis, value in point.items()},
                recipe=validate_recipe(tree, where=f"cell {where}" if where else "recipe"),
            )

    def as_yaml(self) -> str:
        declared = {"contrasts": [list(pair) for pair in self.contrasts]} if self.contrasts else {}
        tree = {"description": self.description, "axes": self.axes, **declared, "recipe": self.recipe}
        return yaml.safe_dump(tree, sort_keys=False, width=120)


def _cell_word(path: str, value: Any) -> str:
    word = str(label(value))
    return word if path in GROUPS else f"{path.rpartition('.')[2]}{word}"


def load_sweep(name: str, overrides: Iterable[str] = (), *, rename: str | None = None) -> Sweep:
    """The sweep file `name` with overrides: `axes.PATH=[...]` changes an axis, `axes.PATH=null` drops it, others change the recipe."""
    tree = read_config("sweep", name)
    unknown = tree.keys() - _SWEEP_KEYS
    if unknown:
        raise PriorlabError(unknown_key(f"sweep {name}", unknown.pop(), _SWEEP_KEYS))
    axes = flat_axes(tree.get("axes") or {}, name)
    recipe = _recipe_tree(tree.get("recipe", {}))
    set_by_hand: list[str] = []
    for override in overrides:
        path, value = parse_override(override)
        if path[0] == "axes":
            changed = flat_axes({".".join(path[1:]): value} if path[1:] else value, name)
            nothing = next((axis for axis, values in changed.items() if values is None and axis not in axes), None)
            if nothing is not None:
                raise PriorlabError(f"axes.{nothing}=null drops no axis of sweep {name!r}; its axes are {', '.join(axes) or 'none'}")
            axes |= changed
        elif path in (["description"], ["contrasts"]):
            tree[path[0]] = value
        elif path == ["recipe"]:
            recipe = _recipe_tree(value)
        else:
            assign(recipe, path, value)
            set_by_hand.append(".".join(path).removesuffix(".use"))
    if not recipe:
        raise PriorlabError(f"sweep {name} has no recipe; add `recipe: NAME`, which is a file in configs/recipe or the path of a .yaml")
    axes = {axis: values for axis, values in axes.items() if values is not None}
    varied = {key: axis for axis in axes for key in axis_keys(axis)}
    for key in set_by_hand:
        if key in varied:
            axis = varied[key].replace(", ", ",")  # as the command line takes it without quotes
            part = "an axis" if axis == key else f"part of the axis {axis}"
            raise PriorlabError(
                f"{key} is {part} of sweep {name!r}, so {key}=... would change nothing; narrow the axis instead, e.g. axes.{axis}=[...]"
            )
    check_axes(axes, name)
    contrasts = _contrasts(tree.get("contrasts") or [], name)
    description = tree.get("description") or ""
    if not isinstance(description, str):
        raise PriorlabError(f"description of sweep {name!r} is {description!r}; give text, in quotes if necessary")
    return Sweep(sweep_name(rename or bare_name(name)), axes, recipe, description, contrasts)


def _contrasts(given: Any, sweep: str) -> tuple[tuple[str, str], ...]:
    pairs = given if isinstance(given, list) else [given]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise PriorlabError(
                f"contrasts of sweep {sweep!r} has {pair!r}; give a list of pairs, a setting and what it is compared with, e.g. "
                "contrasts=[[precision, ce]]"
            )
        if pairs.count(pair) > 1:
            raise PriorlabError(f"contrasts of sweep {sweep!r} has [{', '.join(pair)}] twice")
    return tuple((setting, reference) for setting, reference in pairs)


def load_recipe(name: str, overrides: Iterable[str] = (), rename: str | None = None) -> Sweep:
    """A recipe alone, as a sweep of one cell, which goes by another name if renamed."""
    recipe = _recipe_tree(name)
    if {"axes", "recipe"} & recipe.keys():
        raise PriorlabError(f"{name} is a sweep, not a recipe; run it with `priorlab sweep {name}`")
    for override in overrides:
        path, value = parse_override(override)
        if path[0] == "axes":
            raise PriorlabError(f"{override!r}: a recipe has no axes; set the key itself, or start a sweep of it with `priorlab sweep`")
        assign(recipe, path, value)
    return Sweep(sweep_name(rename or f"{bare_name(name)}-run"), {}, recipe)


def _recipe_tree(node: Any, used: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe by name, or `{use: NAME, ...}`, or in full; bases are merged, groups stay references."""
    if isinstance(node, str):
        node = {"use": node}
    if not isinstance(node, dict):
        raise PriorlabError(f"recipe is {node!r}; give the name of a file in configs/recipe, or a mapping")
    if (odd := next((key for key in node if not isinstance(key, str)), None)) is not None:
        raise PriorlabError(f"recipe has the key {odd!r}; keys must be text")
    node = dict(node)
    base: dict[str, Any] = {}
    if "use" in node:
        name = node.pop("use")
        if name in used:
            raise PriorlabError(f"recipe {name!r} uses itself, by way of {' -> '.join([*used, str(name)])}")
        base = _recipe_tree(read_config("recipe", name), (*used, name))
        base["name"] = bare_name(name)
    for key, value in node.items():
        assign(base, [key], value)
    return base


def parse_override(text: str) -> tuple[list[str], Any]:
    """`rl.steps=50` -> (["rl", "steps"], 50); values are YAML."""
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise PriorlabError(f"{text!r} is not an override; write key=value, e.g. rl.steps=50 or axes.seed=[0,1,2]")
    try:
        return path, parse_yaml(value)
    except ValueError as error:
        raise PriorlabError(f"the value of {text!r} is not YAML: {error}") from error


def assign(tree: dict[str, Any], path: list[str], value: Any, inside: tuple[str, ...] = ()) -> None:
    """Set a key; mappings merge, and a name given to a group keeps the keys beside the old one. `inside` is where `tree` lies."""
    *parents, last = path
    for depth, key in enumerate(parents):
        inner = tree.get(key)
        if isinstance(inner, str) and ".".join([*inside, *path[: depth + 1]]) in GROUPS:
            inner = {"use": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise PriorlabError(f"cannot set {'.'.join(path)}: {'.'.join(path[: depth + 1])} is {inner!r}, not a mapping")
        tree[key] = inner
        tree = inner
    if isinstance(value, dict) and (odd := next((key for key in value if not isinstance(key, str)), None)) is not None:
        raise PriorlabError(f"cannot set {'.'.join(path)}: {odd!r} is not a valid key; keys must be text")
    old = tree.get(last)
    if ".".join([*inside, *path]) in GROUPS:
        if isinstance(value, str):
            value = {"use": value}
        if isinstance(old, str):
            old = {"use": old}
    if isinstance(old, dict) and isinstance(value, dict):
        for key, inner_value in value.items():
            assign(old, [key], inner_value, (*inside, *path))
        tree[last] = old
    else:
        tree[last] = copy.deepcopy(value)


def validate_recipe(tree: dict[str, Any], *, where: str) -> RecipeConfig:
    """Load the named groups and validate everything; errors name the full key, the value and the nearest valid key."""
    try:
        return RecipeConfig.model_validate({key: _resolved(key, node) for key, node in tree.items()})
    except ValidationError as error:
        raise PriorlabError(f"{where}: " + "; ".join(explain(detail) for detail in error.errors())) from None


def _resolved(path: str, node: Any) -> Any:
    """The part of a recipe at `path`, names of groups at and inside it replaced by what the files of those names hold."""
    group = GROUPS.get(path)
    if group is not None and isinstance(node, str):
        node = {"use": node}
    if not isinstance(node, dict):
        return node
    if group is not None and "use" in node:
        changes = dict(node)
        name = changes.pop("use")
        merged = read_config(group, name) | {"name": bare_name(str(name))}
        for key, value in changes.items():
            assign(merged, [key], value, tuple(path.split(".")))
        if group == "prior" and "name" not in changes and (told := renaming(changes, merged)):
            merged["name"] = label({"use": merged["name"], **told})
        node = merged
    if group in _LISTS:
        key, written_out, named_group = _LISTS[group]
        if isinstance(node.get(key), list):
            node = node | {key: [written_out(one, functools.partial(_resolved, named_group), node) for one in node[key]]}
    for inner in GROUPS:
        outer, _, key = inner.rpartition(".")
        if outer == path and key in node:
            node = node | {key: _resolved(inner, node[key])}
    return node
