"""The YAML files of `configs`: where names are looked up, and how files are read."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import yaml

import pipeline
from pipeline.errors import PriorlabError, nearest
from pipeline.store.folders import NAME

_PACKAGE = Path(pipeline.__file__).resolve().parent
# A wheel has the configs inside the package, a checkout of the repository beside it.
_SHIPPED = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


class _Loader(yaml.SafeLoader):
    """Plain words as YAML 1.2's core schema reads them. In 1.1, PyYAML's own, `12:00:00` is 43200 and `yes` is true.

    Kept from 1.1 are merge keys and `500_000`. `010`, ten in one version and eight in the other, is text. Double keys are errors.
    """

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0 if text.startswith(("0o", "0x")) else 10)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
_NUMBER = list("-+.0123456789")
for _tag, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?(0|[1-9][0-9]*(_[0-9]+)*)|0o[0-7]+|0x[0-9a-fA-F]+", _NUMBER),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _NUMBER),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def config_folders() -> list[Path]:
    """Where names are looked up: `configs` of the current folder first, then the ones shipped with the project."""
    return list(dict.fromkeys([Path.cwd() / "configs", _SHIPPED]))


def bare_name(name: str) -> str:
    """A name unchanged, dots and all; for a path, its file's name."""
    return re.sub(r"\.ya?ml$", "", Path(name).name)


def parse_yaml(text: str) -> Any:
    """Raises `ValueError` if it is not YAML, or too deep."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # the last for a number of thousands of digits
        raise ValueError(str(error)) from error


def read_config(group: str, name: Any) -> dict[str, Any]:
    """The YAML file of that name, or at a path ending in .yaml. Raises `PriorlabError` with the nearest name, or what is wrong."""
    if not isinstance(name, str) or not name:
        raise PriorlabError(f"{group} is {name!r}; give the name of a file in configs/{group}")
    if name.endswith((".yaml", ".yml")):
        candidates = [Path(name)]
    elif NAME.fullmatch(name):
        candidates = [folder / group / f"{name}.yaml" for folder in config_folders()]
    else:
        spaces = "; in YAML, a space follows the colon of a key" if ":" in name else ""
        raise PriorlabError(f"{name!r} cannot name a {group}; names have letters, digits, '.', '_' and '-'{spaces}")
    for path in candidates:
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except UnicodeDecodeError as error:
            raise PriorlabError(f"{path} is not valid YAML: {error}") from error
        return copy.deepcopy(_parse(path, text))
    known = available(group)
    near = nearest(name, known)
    hint = f"did you mean {near!r}? " if near else ""
    raise PriorlabError(f"there is no {group} {name!r}; {hint}known: {', '.join(known) or 'none'}")


@functools.lru_cache(maxsize=256)
def _parse(path: Path, text: str) -> dict[str, Any]:
    """A YAML file's mapping; cached, because parsing takes milliseconds."""
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise PriorlabError(f"{path} is not valid YAML: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise PriorlabError(f"{path} is not a config: give a mapping of keys to values")
    return tree


def available(group: str) -> list[str]:
    """A group's known names."""
    return sorted({bare_name(path.name) for folder in config_folders() for path in (folder / group).glob("*.yaml")})
