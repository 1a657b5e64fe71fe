"""The axes of a sweep: a key with its values, or several keys linked in one axis, and what their values are called.

A linked axis names its keys with commas between them, and each of its values is a list with one value per key:

    "prior, rl.optimizer.learning_rate": [[ce, 2.0e-4], [precision, 1.0e-4]]
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import PriorlabError


def axis_keys(axis: str) -> list[str]:
    """The keys of a recipe that an axis sets."""
    return [key.strip() for key in axis.split(",")]


def assignments(axis: str, value: Any) -> list[tuple[str, Any]]:
    """Key and value of what one value of an axis sets."""
    keys = axis_keys(axis)
    return [(axis, value)] if len(keys) == 1 else list(zip(keys, value, strict=True))


def coordinate(axis: str, value: Any) -> Any:
    """An axis value as one word or number; for a linked axis, one word per key."""
    found = assignments(axis, value)
    return label(value) if len(found) == 1 else " ".join(words(key, label(inner)) for key, inner in found)


def words(axis: str, told: Any) -> str:
    """A coordinate as part of a setting's name: priors, and what is linked, need no key in front."""
    return str(told) if axis == "prior" or len(axis_keys(axis)) > 1 else f"{axis}={told}"


def label(value: Any) -> Any:
    """A value as one word or number: a config with changes is called by its name, or its base and its changes; null is `none`.

    The form of a prior's reward stands in brackets: `precision[power]`.
    """
    if value is None:
        return "none"
    if not isinstance(value, dict):
        return value
    if "name" in value:
        return str(value["name"])
    changes = [f"{key}={_schedule_word(inner)}" for key, inner in value.items() if key not in ("use", "form")]
    form = f"[{value['form']}]" if "form" in value else ""
    return ",".join(filter(None, [str(value.get("use", "")), *changes])) + form


def _schedule_word(value: Any) -> Any:
    """A prior's schedule as `precision@0.5`; any other value as it is."""
    if not isinstance(value, list) or not all(isinstance(item, dict) and "at" in item for item in value):
        return value
    return "-".join(f"{label({key: inner for key, inner in item.items() if key != 'at'})}@{item['at']}" for item in value)


def flat_axes(tree: Any, sweep: str, prefix: str = "") -> dict[str, Any]:
    """`rl: {learning_rate: [..]}` and `rl.learning_rate: [..]` are the same axis."""
    if not isinstance(tree, dict):
        raise PriorlabError(f"axes of sweep {sweep!r} is {tree!r}; give a mapping from keys to lists")
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if prefix and "," in str(key):
            raise PriorlabError(f"axes.{prefix[:-1]} of sweep {sweep!r} links {key!r}; write linked keys in full, right below axes")
        found = flat_axes(value, sweep, f"{prefix}{key}.") if isinstance(value, dict) else {axis_name(f"{prefix}{key}"): value}
        twice = next((axis for axis in found if axis in flat), None)
        if twice is not None:
            raise PriorlabError(f"axes of sweep {sweep!r} has {twice} twice; give all its values in one list")
        flat |= found
    return flat


def axis_name(axis: str) -> str:
    """An axis as written, in the one spelling that everything else uses."""
    return ", ".join(axis_keys(axis))


def check_axes(axes: dict[str, Any], sweep: str) -> None:
    """Raises `PriorlabError` for an axis without values, with one twice, with values that do not fit its keys, or with a key that
    another axis has.
    """
    of_key: dict[str, str] = {}
    for axis, values in axes.items():
        where, keys = f"axes.{axis} of sweep {sweep!r}", axis_keys(axis)
        if not isinstance(values, list):
            raise PriorlabError(f"{where} is {values!r}; an axis is a list, e.g. axes.{axis}=[{values}]")
        if not values:
            raise PriorlabError(f"{where} is empty; give at least one value, or drop the axis")
        if len(keys) > 1:
            _check_links(where, keys, values)
        repeated = next((value for value in values if values.count(value) > 1), None)
        if repeated is not None:
            raise PriorlabError(f"{where} lists {coordinate(axis, repeated)!r} twice")
        for key in keys:
            if key in of_key:
                both = f"{axis!r} twice" if of_key[key] == axis else f"two axes, {of_key[key]!r} and {axis!r}"
                raise PriorlabError(
                    f"sweep {sweep!r} has {key} in {both}; a key varies along one axis: drop one, e.g. with axes.{key}=null"
                )
            of_key[key] = axis


def _check_links(where: str, keys: list[str], values: list[Any]) -> None:
    if "" in keys:
        raise PriorlabError(f"{where} names an empty key between its commas; leave the comma out")
    if "seed" in keys:
        raise PriorlabError(f"{where} links seed; settings are compared over the same seeds, so give seed an axis of its own")
    for number, value in enumerate(values):
        if not isinstance(value, list) or len(value) != len(keys):
            raise PriorlabError(
                f"{where} links {len(keys)} keys, but its value {number} is {value!r}; give each value as a list of {len(keys)}: "
                f"[{', '.join(f'value of {key}' for key in keys)}]"
            )
