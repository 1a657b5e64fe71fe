"""Settings: what a sweep compares, and with what. A setting is all cells that differ only in their seed.

Both follow from the sweep's cells before any is measured, so the reference does not depend on what has finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PriorlabError
from pipeline.experiment.axes import axis_keys, words
from pipeline.experiment.compose import Cell

BASELINE = "ce"
"""The reference on an axis of priors that has it; on any other axis, the first value is."""

DECLARED = "declared contrasts"
"""Used in place of an axis, wherever results are reported by axis, for the pairs that the sweep declares."""
_LISTED = 12


@dataclass(frozen=True)
class Setting:
    name: str
    coordinates: dict[str, Any]
    """Values of the sweep's axes, without the seed."""
    cells: list[Cell]

    def without(self, axis: str) -> Setting:
        """The same cells, as if the sweep had no such axis."""
        coordinates = {path: value for path, value in self.coordinates.items() if path != axis}
        return Setting(setting_name(coordinates, self.cells[0]), coordinates, self.cells)


def planned_settings(cells: Sequence[Cell]) -> list[Setting]:
    """In the order of the cells."""
    found: dict[str, Setting] = {}
    for cell in cells:
        coordinates = {path: value for path, value in cell.coordinates.items() if path != "seed"}
        name = setting_name(coordinates, cell)
        found.setdefault(name, Setting(name, coordinates, [])).cells.append(cell)
    return list(found.values())


def setting_name(coordinates: dict[str, Any], cell: Cell) -> str:
    """Of the setting with these values of the axes, one of whose cells is `cell`."""
    return " ".join(words(axis, value) for axis, value in coordinates.items()) or cell.recipe.prior.name


def pairs(of_sweep: Sequence[Setting]) -> dict[str, list[tuple[Setting, Setting]]]:
    """By axis: each setting with the one that differs from it only in having the axis's reference value."""
    found = {}
    for axis in dict.fromkeys(path for setting in of_sweep for path in setting.coordinates):
        value = next((setting for setting in of_sweep if _is_baseline(setting, axis)), of_sweep[0]).coordinates[axis]
        references = {_others(setting, axis): setting for setting in of_sweep if setting.coordinates[axis] == value}
        along = [(setting, references[_others(setting, axis)]) for setting in of_sweep if setting.coordinates[axis] != value]
        if along:
            found[axis] = along
    return found


def axis_between(setting: Setting, reference: Setting) -> str | None:
    """The one axis in which two settings of a sweep differ; None if they differ in several."""
    differing = [axis for axis, value in setting.coordinates.items() if value != reference.coordinates[axis]]
    return differing[0] if len(differing) == 1 else None


def declared_pairs(of_sweep: Sequence[Setting], contrasts: Sequence[tuple[str, str]]) -> list[tuple[Setting, Setting]]:
    """The sweep's own contrasts. Raises `PriorlabError` if one names no setting of the sweep, or a setting twice."""
    by_name = {setting.name: setting for setting in of_sweep}
    for pair in contrasts:
        unknown = next((name for name in pair if name not in by_name), None)
        if unknown is not None or pair[0] == pair[1]:
            why = f"names {pair[0]!r} twice" if unknown is None else f"names {unknown!r}, which is not a setting of this sweep"
            known = ", ".join(list(by_name)[:_LISTED]) + (", ..." if len(by_name) > _LISTED else "")
            raise PriorlabError(f"contrasts has [{', '.join(pair)}], which {why}; there are: {known}. contrasts=[] declares none")
    return [(by_name[setting], by_name[reference]) for setting, reference in contrasts]


def _is_baseline(setting: Setting, axis: str) -> bool:
    recipe, keys = setting.cells[0].recipe, axis_keys(axis)
    priors = {
        "prior": recipe.prior,
        "midtrain.prior": recipe.midtrain and recipe.midtrain_prior,
        "sft.prior": recipe.sft and recipe.sft.prior,
    }
    return any(key in keys and prior is not None and prior.name == BASELINE for key, prior in priors.items())


def _others(setting: Setting, axis: str) -> str:
    return str(setting.without(axis).coordinates)
