"""Linked axes: several keys that vary together are one axis, from the sweep file to the comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.compare.settings import pairs, planned_settings
from pipeline.errors import PriorlabError
from pipeline.experiment.axes import axis_keys
from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import build_graph
from pipeline.experiment.saved import known_sweep, redefinition, save_definition
from pipeline.store.folders import Home

LINKED = "prior, rl.optimizer.learning_rate"
RATES = [["precision", 1.0e-4], ["ce", 2.0e-4], [{"use": "ce", "temperature": 0.9}, 2.0e-4]]
ON_THE_COMMAND_LINE = "axes.prior,rl.optimizer.learning_rate=[[precision,1e-4],[ce,2e-4],[{use: ce, temperature: 0.9},2e-4]]"


def written(folder: Path, axes: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": "quickstart", "axes": axes}, sort_keys=False))
    return str(path)


def test_a_value_sets_all_keys_of_its_axis(tmp_path: Path) -> None:
    cells = list(load_sweep(written(tmp_path, {LINKED: RATES, "seed": [0, 1]})).cells())
    assert len(cells) == 3 * 2
    found = [(cell.recipe.prior.name, cell.recipe.rl.optimizer.learning_rate, cell.recipe.seed) for cell in cells if cell.recipe.rl]
    assert found[1:4] == [("precision", 1e-4, 1), ("ce", 2e-4, 0), ("ce", 2e-4, 1)]
    assert [cell.id for cell in cells][::2] == [
        "precision-learning_rate0.0001-seed0", "ce-learning_rate0.0002-seed0", "ce,temperature=0.9-learning_rate0.0002-seed0",
    ]  # fmt: skip
    assert cells[2].coordinates == {LINKED: "ce rl.optimizer.learning_rate=0.0002", "seed": 0}


def test_the_command_line_takes_the_same(tmp_path: Path) -> None:
    in_file = load_sweep(written(tmp_path, {LINKED: RATES}), rename="mine")
    typed = load_sweep(written(tmp_path, {"prior,rl.optimizer.learning_rate": [["tail", 1.0]]}), [ON_THE_COMMAND_LINE], rename="mine")
    assert typed == in_file


def test_it_is_one_axis_whose_reference_is_cross_entropy(tmp_path: Path) -> None:
    settings = planned_settings(list(load_sweep(written(tmp_path, {LINKED: RATES, "seed": [0, 1]})).cells()))
    names = [
        "precision rl.optimizer.learning_rate=0.0001", "ce rl.optimizer.learning_rate=0.0002",
        "ce,temperature=0.9 rl.optimizer.learning_rate=0.0002",
    ]  # fmt: skip
    assert [setting.name for setting in settings] == names
    assert [[cell.recipe.seed for cell in setting.cells] for setting in settings] == [[0, 1]] * 3
    found = {axis: [(one.name, other.name) for one, other in along] for axis, along in pairs(settings).items()}
    assert found == {LINKED: [(names[0], names[1]), (names[2], names[1])]}


def test_without_a_prior_the_first_value_is_the_reference(tmp_path: Path) -> None:
    axis = "rl.steps, rl.optimizer.learning_rate"
    settings = planned_settings(list(load_sweep(written(tmp_path, {axis: [[20, 4e-4], [40, 2e-4]]})).cells()))
    assert [setting.name for setting in settings] == [
        "rl.steps=20 rl.optimizer.learning_rate=0.0004", "rl.steps=40 rl.optimizer.learning_rate=0.0002",
    ]  # fmt: skip
    assert [(one.name, other.name) for one, other in pairs(settings)[axis]] == [(settings[1].name, settings[0].name)]


def test_a_saved_sweep_reads_back_as_it_was(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    sweep = load_sweep(written(tmp_path, {LINKED: RATES, "seed": [0]}))
    home.sweep("mine").mkdir(parents=True)
    save_definition(sweep, build_graph(sweep.cells()), home)
    saved = known_sweep("mine", home)
    assert (saved.axes, list(saved.cells())) == (sweep.axes, list(sweep.cells()))
    assert redefinition(sweep, home) == []
    changed = load_sweep(written(tmp_path, {LINKED: [["precision", 3.0e-4], *RATES[1:]], "seed": [0]}))
    assert redefinition(changed, home) == [
        "cell precision-learning_rate0.0001-seed0 is no longer part of it", "cell precision-learning_rate0.0003-seed0 is new",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({LINKED: [["ce", 1e-4], "tail"]}, f"axes.{LINKED} of sweep 'mine' links 2 keys, but its value 1 is 'tail'; give each"),
        ({LINKED: [["ce", 1e-4, 3]]}, "its value 0 is ['ce', 0.0001, 3]; give each value as a list of 2: [value of prior"),
        ({LINKED: "ce"}, "is 'ce'; an axis is a list"),
        ({LINKED: []}, "is empty; give at least one value, or drop the axis"),
        ({LINKED: [["ce", 1e-4]] * 2}, "lists 'ce rl.optimizer.learning_rate=0.0001' twice"),
        ({LINKED: RATES, "prior": ["ce"]}, f"sweep 'mine' has prior in two axes, '{LINKED}' and 'prior'; a key varies along one"),
        ({"prior, prior": [["ce", "ce"]]}, "sweep 'mine' has prior in 'prior, prior' twice"),
        ({"prior, seed": [["ce", 0]]}, "links seed; settings are compared over the same seeds, so give seed an axis of its own"),
        ({"prior,": [["ce", 0]]}, "names an empty key between its commas; leave the comma out"),
        ({"rl": {"steps, problems": [[1, 2]]}}, "axes.rl of sweep 'mine' links 'steps, problems'; write linked keys in full"),
        ({LINKED: RATES, "prior,rl.optimizer.learning_rate": RATES}, f"axes of sweep 'mine' has {LINKED} twice; give all its"),
        ({"rl.steps": [1], "rl": {"steps": [2]}}, "axes of sweep 'mine' has rl.steps twice; give all its values in one list"),
        ({"prior, rl.stepps": [["ce", 1]]}, "cell prior=ce, rl.stepps=1: rl has no key 'stepps'; did you mean 'steps'?"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(axes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(PriorlabError) as error:
        list(load_sweep(written(tmp_path, axes), rename="mine").cells())
    assert message in str(error.value).replace(f"{tmp_path}/mine.yaml", "mine")


def test_a_linked_key_set_by_hand_would_change_nothing(tmp_path: Path) -> None:
    with pytest.raises(PriorlabError) as error:
        load_sweep(written(tmp_path, {LINKED: RATES}), ["rl.optimizer.learning_rate=1e-3"])
    assert "rl.optimizer.learning_rate is part of the axis prior,rl.optimizer.learning_rate of sweep" in str(error.value)
    assert "e.g. axes.prior,rl.optimizer.learning_rate=[...]" in str(error.value)


def test_an_axis_of_one_key_is_that_key() -> None:
    assert axis_keys("prior") == ["prior"]
    assert axis_keys("prior,  rl.steps") == ["prior", "rl.steps"]
