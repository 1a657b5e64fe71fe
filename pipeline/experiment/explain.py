"""What is wrong with a recipe, in the user's words: the full key, the value, and the nearest valid key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from pipeline.config.recipe import RecipeConfig
from pipeline.errors import nearest


def explain(detail: Any) -> str:
    """One error of pydantic's `ValidationError`."""
    location, config = _place([str(part) for part in detail["loc"]])
    path = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return unknown_key(".".join(location[:-1]) or "recipe", location[-1], config.model_fields)
    if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        field = next(part for part in reversed(location) if part in config.model_fields)
        kind, kinds = detail["ctx"].get("tag"), ", ".join(sorted(_kinds(config.model_fields[field].annotation)))
        return f"{path}.kind is {kind or 'missing'}; {path} needs one of {kinds}"
    if detail["type"] == "missing":
        parent = ".".join(location[:-1]) or "the recipe"
        return f"{path} is missing; {parent} needs it"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path} is {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _place(location: list[str]) -> tuple[list[str], type[BaseModel]]:
    """An error's location as the user wrote it, and the innermost config around it; pydantic adds the kind chosen from a union."""
    written: list[str] = []
    config: type[BaseModel] = RecipeConfig
    kinds: dict[str, type[BaseModel]] = {}
    below_a_name = False
    annotation: Any = None
    for part in location:
        if below_a_name:  # in a mapping with the user's own names
            written.append(part)
            below_a_name = False
            if not _configs(annotation):  # what follows are pydantic's names for the kinds of value there
                break
            continue
        if part in kinds:
            config, kinds = kinds[part], {}
            continue
        written.append(part)
        annotation = config.model_fields[part].annotation if part in config.model_fields else None
        below_a_name = get_origin(annotation) is dict
        if not part.isdigit():  # the items of a list share its kinds
            kinds = _kinds(annotation)
        if not kinds:
            config = next(iter(_configs(annotation)), config)
    return written, config


def _configs(annotation: Any) -> list[type[BaseModel]]:
    """The configs that a field may hold, inside a mapping or not."""
    found = []
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            found.append(candidate)
        elif candidate is not annotation:
            found += _configs(candidate)
    return found


def _kinds(annotation: Any) -> dict[str, type[BaseModel]]:
    """The members of a union discriminated by `kind`; empty for anything else."""
    members = [config for config in _configs(annotation) if "kind" in config.model_fields]
    return {config.model_fields["kind"].default: config for config in members} if len(members) > 1 else {}


def unknown_key(where: str, key: str, known: Iterable[str]) -> str:
    """A message that the key is unknown, and which one was likely meant."""
    known = sorted(known)
    near = nearest(key, known)
    hint = f"did you mean {near!r}?" if near else f"it has {', '.join(known)}"
    return f"{where} has no key {key!r}; {hint}"
