"""Identity of a stage: sha256 over kind, recipe version, identity fields and the parents' fingerprints.

The canonical form refuses whatever has no stable text (sets, objects, NaN), so that identity never depends on a `repr`.
Code is not hashed: a recipe version per stage kind is raised by hand when results change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii
from typing import Any


def canonical_json(value: Any, path: str = "$") -> str:
    """One text per value: sorted keys, no spaces, shortest floats. Raises `TypeError` naming the path of what cannot be stable."""
    parts: list[str] = []
    _write(value, (path,), parts)
    return "".join(parts)


def _write(value: Any, path: tuple[Any, ...], parts: list[str]) -> None:
    """Append the text of a value; `path` is where it stands, outermost last, spelled out only for an error."""
    if isinstance(value, str):
        parts.append(encode_basestring_ascii(value))
    elif value is None or isinstance(value, bool):
        parts.append(_WORDS[value])
    elif isinstance(value, int):
        parts.append(int.__repr__(value))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{_spelled(path)} is {value}; identity needs finite numbers")
        parts.append(repr(value + 0.0))  # -0.0 and 0.0 are the same setting
    elif isinstance(value, (list, tuple)):
        separator = "["
        for place, item in enumerate(value):
            parts.append(separator)
            _write(item, (place, path), parts)
            separator = ","
        parts.append("]" if value else "[]")
    elif isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{_spelled(path)} has the key {key!r}; identity needs text keys")
        separator = "{"
        for key in sorted(value):
            parts += (separator, encode_basestring_ascii(key), ":")
            _write(value[key], (key, path), parts)
            separator = ","
        parts.append("}" if value else "{}")
    else:
        raise TypeError(f"{_spelled(path)} is a {type(value).__name__}, which has no stable text; use plain JSON types")


_WORDS = {None: "null", True: "true", False: "false"}


def _spelled(path: tuple[Any, ...]) -> str:
    """`$.optimizer.betas[0]`"""
    if len(path) == 1:
        return str(path[0])
    last, rest = path
    return _spelled(rest) + (f"[{last}]" if isinstance(last, int) else f".{last}")


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
