"""What identifies a stage, planned or on disk, in comparable form: for `diff`, and for the reasons that `plan` gives.

It has the fingerprint's parts: kind, recipe version, identity fields, parents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import PriorlabError
from pipeline.experiment.fingerprint import drift
from pipeline.experiment.graph import StageNode
from pipeline.store.files import read_json
from pipeline.store.folders import Home, StageFolder, names_parents


@dataclass(frozen=True)
class Identity:
    name: str
    kind: str
    fingerprint: str
    recipe_version: int | None
    fields: dict[str, Any] | None
    """None for a parent whose folder is gone."""
    parents: dict[str, Identity] = field(default_factory=dict)


def planned_identity(node: StageNode) -> Identity:
    parents = {role: planned_identity(parent) for role, parent in node.parents.items()}
    return Identity(node.name, node.kind, node.fingerprint, node.config.version, node.config.identity(), parents)


class StoredIdentities:
    """Identities of stages on disk, each read once: a corpus is the parent of hundreds."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._known: dict[Path, Identity] = {}

    def of(self, folder: StageFolder) -> Identity:
        """From the record, or from the spec while there is none. Raises `PriorlabError` if neither says what the stage is."""
        if folder.path not in self._known:
            self._known[folder.path] = self._read(folder)
        return self._known[folder.path]

    def _read(self, folder: StageFolder) -> Identity:
        spec, record = read_json(folder.spec), folder.record()
        needed = {"fingerprint", "recipe_version", "identity", "parents"}
        if not isinstance(spec, dict) or not needed <= spec.keys() or not names_parents(spec):
            raise PriorlabError(f"{folder.spec} does not say what the stage is; start its sweep again to rewrite it")
        known = record if record is not None and needed <= record.keys() else spec
        parents = {role: self._parent(**parent) for role, parent in spec["parents"].items()}
        return Identity(folder.name, folder.kind, known["fingerprint"], known["recipe_version"], known["identity"], parents)

    def _parent(self, kind: str, fingerprint: str, folder: str) -> Identity:
        slug = Path(folder).name.rpartition("-")[0]  # the name only: a home may have been moved
        found = self.home.stage(kind, slug, fingerprint)
        return self.of(found) if found.spec.exists() else Identity(f"{kind}/{fingerprint[:12]}", kind, fingerprint, None, None)


def own_differences(before: Identity, after: Identity) -> list[str]:
    """Field by field; a changed parent is a single difference."""
    return [*_fields(before, after), *(f"{where}: {old} -> {new}" for where, old, new in _changed_parents(before, after))]


def differences(before: Identity, after: Identity) -> list[str]:
    """Field by field, through all parents; a pair of parents reached in two ways is compared once."""
    return list(_all_differences(before, after, "", set()))


def _all_differences(before: Identity, after: Identity, path: str, seen: set[tuple[str, str]]) -> Iterator[str]:
    seen.add((before.fingerprint, after.fingerprint))
    yield from (f"{path}{line}" for line in _fields(before, after))
    for where, old, new in _changed_parents(before, after):
        older, newer = (identity.parents.get(where.removeprefix("parents.")) for identity in (before, after))
        if older is None or newer is None:
            yield f"{path}{where}: {old} -> {new}"
        elif older.fields is None or newer.fields is None:
            yield f"{path}{where}: {old} -> {new} (its folder is gone, so its fields cannot be compared)"
        elif (older.fingerprint, newer.fingerprint) not in seen:
            yield from _all_differences(older, newer, f"{path}{where}.", seen)


def _fields(before: Identity, after: Identity) -> Iterator[str]:
    if before.kind != after.kind:
        yield f"kind: {before.kind} -> {after.kind}"
    elif before.recipe_version != after.recipe_version:
        yield f"recipe_version: {before.recipe_version} -> {after.recipe_version}"
    yield from drift(before.fields or {}, after.fields or {})


def _changed_parents(before: Identity, after: Identity) -> Iterator[tuple[str, str, str]]:
    for role in sorted(before.parents.keys() | after.parents.keys()):
        old, new = before.parents.get(role), after.parents.get(role)
        if old is None or new is None or old.fingerprint != new.fingerprint:
            yield f"parents.{role}", "absent" if old is None else old.name, "absent" if new is None else new.name
