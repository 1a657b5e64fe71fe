"""What all configs share: unknown keys are errors, instances are immutable, and each field is identity or execution.

*Identity* decides the numbers a stage produces, and so its fingerprint; *execution* is where and how it runs (declared with
`execution(...)`). `Config.identity()` keeps the first kind and drops knobs that cannot matter.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Dtype = Literal["float32", "bfloat16"]


def execution(default: Any, **constraints: Any) -> Any:
    """A field that never affects results: the fingerprint omits it."""
    return Field(default, json_schema_extra={"execution": True}, **constraints)


def identity_since(default: Any, **constraints: Any) -> Any:
    """An identity field added after results existed: left out at its default, so that they keep their fingerprints."""
    return Field(default, json_schema_extra={"left_out_at_default": True}, **constraints)


_EXACT = 2**53
"""Up to here a float is the number that was written."""


def _take_no_other_type(schema: Any) -> None:
    """Make pydantic refuse `"00"` and `true` as numbers, and `1` and `"yes"` as booleans, but accept 1e3 as an integer.

    pydantic's strict mode would also refuse lists for tuples, which is all that YAML and JSON have.
    """
    if isinstance(schema, list | tuple):
        for inner in schema:
            _take_no_other_type(inner)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind == "function-before" and schema["function"]["function"] in (_whole, _no_truth):  # done: it is of a config inside this one
        return
    if kind in ("int", "float", "bool"):
        strict = schema | {"strict": True}
        schema.clear()
        schema.update(core_schema.no_info_before_validator_function(_whole, strict) if kind == "int" else strict)
        return
    if kind == "literal" and all(isinstance(choice, int) for choice in schema["expected"]):
        choice = dict(schema)
        schema.clear()
        schema.update(core_schema.no_info_before_validator_function(_no_truth, choice))
        return
    for inner in schema.values():
        _take_no_other_type(inner)


def _no_truth(value: Any) -> Any:
    """To Python, true is 1."""
    return str(value).lower() if isinstance(value, bool) else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT else value


class Config(BaseModel):
    """Base of all configs: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _take_no_other_type(schema)
        return schema

    def identity(self) -> dict[str, Any]:
        """The fields that decide results, as plain JSON types."""
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            declared = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            if declared.get("execution"):
                continue
            value = _plain(getattr(self, name))
            # Compare identities, not values: a renamed default is still the default.
            if not declared.get("left_out_at_default") or value != _plain(field.default):
                kept[name] = value
        return kept


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
