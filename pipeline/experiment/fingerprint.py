"""Identity of a stage: sha256 over kind, recipe version, identity fields and the parents' fingerprints.

The canonical form refuses whatever has no stable text (sets, objects, NaN), so that identity never depends on a `repr`.
Code is not hashed: a recipe version per stage kind is raised by hand when results change.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, shortest floats. Raises `TypeError` naming the path of what cannot be stable."""
    return json.dumps(_stable(value, "$"), sort_keys=True, separators=(",", ":"))


def _stable(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}; identity needs text keys")
        return {key: _stable(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stable(item, f"{path}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{path} is {value}; identity needs finite numbers")
        return value + 0.0  # -0.0 and 0.0 are the same setting
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}, which has no stable text; use plain JSON types")


def fingerprint(kind: str, recipe_version: int, identity: dict[str, Any], parents: dict[str, str]) -> str:
    """64 hex digits; `parents` maps a role (corpus, checkpoint) to the parent's fingerprint."""
    text = canonical_json({"kind": kind, "recipe_version": recipe_version, "identity": identity, "parents": parents})
    return hashlib.sha256(text.encode()).hexdigest()


def drift(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Field by field, what differs between two identities: `optimizer.learning_rate: 0.002 -> 0.001`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            inner = f"{path}.{key}" if path else key
            if key not in before:
                yield f"{inner}: absent -> {after[key]!r}"
            elif key not in after:
                yield f"{inner}: {before[key]!r} -> absent"
            else:
                yield from drift(before[key], after[key], inner)
    elif before != after:
        yield f"{path}: {before!r} -> {after!r}"
