"""Datasets of the Hugging Face hub: what to load, and what to say when that fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import PriorlabError


def on_hub(name: str) -> str:
    """What to load: the hub's dataset, not a folder of the same name in the current folder; a path stays a path."""
    return f"hf://datasets/{name}" if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) else name


@contextmanager
def explained(name: str, subset: str | None, split: str, *, key: str, instead: str) -> Iterator[None]:
    """Turns an error of any library that loads a dataset (no network, wrong name, subset or split) into a `PriorlabError`.

    `key` is where the config names the dataset, `instead` how to name a copy of it.
    """
    try:
        yield
    except PriorlabError:
        raise
    except Exception as error:
        raise PriorlabError(
            f"cannot load the dataset {name!r} (subset {subset}, split {split}) of {key} from the hub: "
            f"{type(error).__name__}: {error}. Without a network, use a copy: {instead}"
        ) from error
