"""A value means one thing: YAML 1.2's, of the type that the key has, in files, on the command line and along an axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe, load_sweep, parse_override
from pipeline.experiment.graph import build_graph, check_cells_differ
from pipeline.run.backend import Command
from pipeline.run.slurm.backend import SlurmBackend
from pipeline.store.folders import Home
from tests.unit.stores import shelf_at


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in ("yes", "no", "on", "off", "Yes", "NO", "y", "n", "True dat")),
        *((text, text) for text in ("12:00:00", "1:30", "-1:30", "1:30.5", "010", "-010", "00", "08", "0b101", "_1", "1__0", "+0o7")),
        *((text, text) for text in ("2026-01-01", "2026-01-01T12:00:00Z", "2026-13-45", "=", "0.1.2", "1e", "862e886ed9aa", ".")),
        *((text, True) for text in ("true", "True", "TRUE")), *((text, False) for text in ("false", "False", "FALSE")),
        *((text, None) for text in ("null", "Null", "NULL", "~", "")),
        ("0", 0), ("-12", -12), ("+3", 3), ("500_000", 500_000),
        ("0o17", 15), ("0x1F", 31), ("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("-0.5e-3", -0.0005),
        ("1e-4", 1e-4), ("1E4", 1e4), (".inf", float("inf")), ("-.Inf", float("-inf")), ("'010'", "010"), ('"yes"', "yes"),
        ("[010, 1:30, no]", ["010", "1:30", "no"]), ("{time: 12:00:00, nice: 010}", {"time": "12:00:00", "nice": "010"}),
    ],
)  # fmt: skip
def test_plain_words_are_read_by_the_core_schema(text: str, value: Any) -> None:
    found = parse_override(f"a={text}")[1]
    assert (found, type(found)) == (value, type(value))


NOT_NUMBERS = ("yes", "no", "on", "off", "true", "false", "010", "1:30", "2026-01-01", "'1'", '"0.5"', "0b1")


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize("key", ["seed", "rl.steps", "pretrain.optimizer.weight_decay", "evaluate.temperature", "model.moe.experts"])
def test_what_is_no_number_is_refused_where_one_is_meant(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(PriorlabError, match=rf"{key} is .*: input should be a valid (number|integer)"):
        list(load_recipe("quickstart", [f"{key}={value}"]).cells())
    path = tmp_path / "mine.yaml"
    *outer, last = key.split(".")
    inner = f"{last}: {value}"
    for part in reversed(outer):
        inner = f"{part}: {{{inner}}}"
    path.write_text(f"use: quickstart\n{inner}\n")
    with pytest.raises(PriorlabError, match=rf"{key} is .*: input should be a valid (number|integer)"):
        list(load_recipe(str(path)).cells())


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_the_same_along_an_axis_and_inside_a_list(value: str) -> None:
    for axis in ("seed", "rl.optimizer.learning_rate", "prior.beta"):
        with pytest.raises(PriorlabError, match=rf"{axis} is .*: input should be a valid (number|integer)"):
            list(load_sweep("quickstart", [f"axes.{axis}=[{value}]", "axes.prior=[ce]"]).cells())
    with pytest.raises(PriorlabError, match=r"task.numbers.0 is .*: input should be a valid integer"):
        list(load_recipe("quickstart", [f"task.numbers=[{value}]"]).cells())


@pytest.mark.parametrize("value", ["yes", "no", "on", "off", "1", "0", "1.0", "'true'"])
def test_what_is_neither_true_nor_false_is_refused_where_one_is_meant(value: str) -> None:
    with pytest.raises(PriorlabError, match=r"tracking.artifacts is .*: input should be a valid boolean"):
        list(load_recipe("quickstart", [f"tracking.artifacts={value}"]).cells())


@pytest.mark.parametrize("value", ["true", "'1'", "1.5"])
def test_a_choice_of_numbers_takes_no_other_type(value: str) -> None:
    with pytest.raises(PriorlabError, match=r"pretrain.launch.zero_stage is "):
        list(load_recipe("quickstart", [f"pretrain.launch.zero_stage={value}"]).cells())


def test_a_whole_number_may_be_written_with_an_exponent() -> None:
    (cell,) = load_recipe("quickstart", ["rl.steps=1e2", "pretrain.optimizer.weight_decay=1"]).cells()
    assert (cell.recipe.rl and cell.recipe.rl.steps, cell.recipe.pretrain.optimizer.weight_decay) == (100, 1.0)
    for huge in ("1e23", "1.5"):
        with pytest.raises(PriorlabError, match=r"rl\.steps is "):
            list(load_recipe("quickstart", [f"rl.steps={huge}"]).cells())


def test_a_time_stays_a_time_on_its_way_to_slurm(tmp_path: Path) -> None:
    options = ["cluster=slurm", "cluster.options={time: 12:00:00, begin: 2026-12-01, nice: 5, exclusive: true, comment: no}"]
    (plan,) = build_graph(load_recipe("smoke", options).cells()).cells
    backend = SlurmBackend(Command(Home(tmp_path), "mine", plan.cell.recipe.cluster, 1, "test"))
    node = plan.chain["corpus"]
    told = backend._parameters(node, node.folder(Home(tmp_path)), [])["additional_parameters"]
    assert {"time": "12:00:00", "begin": "2026-12-01", "nice": 5, "exclusive": True, "comment": "no"}.items() <= told.items()


@pytest.mark.parametrize("number", ["9" * 5000, "[" + "9" * 5000 + "]"])
def test_a_number_of_thousands_of_digits_is_refused(number: str) -> None:
    with pytest.raises(PriorlabError, match="is not YAML"):
        parse_override(f"seed={number}")


@pytest.mark.parametrize(
    ("axis", "what"),
    [
        ('axes.seed=[0,"00"]', "seed is '00'"),
        ("axes.seed=[0,0.0]", "lists 0 twice"),
        ("axes.rl.optimizer.learning_rate=[1e-3,0.001]", "lists 0.001 twice"),
        ("axes.prior=[ce,{use: ce, beta: 0}]", "cells 'ce-seed0' and 'ce,beta=0-seed0' are the same run"),
        ("axes.prior=[{use: ce, k: 5},{use: ce, k: 6}]", "are the same run"),  # k decides nothing where no rank is rewarded
        ("axes.pretrain.launch.threads=[1,2]", "are the same run"),  # where it runs is not what runs
    ],
)  # fmt: skip
def test_one_value_in_two_spellings_is_no_second_cell(axis: str, what: str, tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    assert what in shelf.refusal("plan", "quickstart", "axes.prior=[ce]", "axes.seed=[0]", axis)
    assert what in shelf.refusal("sweep", "quickstart", "axes.prior=[ce]", "axes.seed=[0]", axis)
    assert not shelf.home.path.exists()


def test_cells_that_share_some_stages_are_not_the_same_run() -> None:
    check_cells_differ(build_graph(load_sweep("quickstart", ["axes.evaluate.temperature=[0.5,1.0]"]).cells()))


@pytest.mark.parametrize(
    "overrides",
    [["axes={seed: [0,1]}"], ["axes={rl.optimizer.learning_rate: [1e-4,2e-4]}"], ["axes.rl={optimizer: {learning_rate: [1e-4,2e-4]}}"]],
)
def test_axes_can_be_given_as_a_mapping(overrides: list[str]) -> None:
    sweep = load_sweep("smoke", overrides)
    (added,) = sweep.axes.keys() - {"prior"}
    assert sweep.axes["prior"] == ["ce", "tail"]
    assert (added, len(list(sweep.cells()))) in (("seed", 4), ("rl.optimizer.learning_rate", 4))


@pytest.mark.parametrize("given", ["axes=5", "axes=null", "axes=[ce]", "axes.rl={optimizer: 3}"])
def test_what_is_no_mapping_of_axes_is_refused(given: str) -> None:
    with pytest.raises(PriorlabError, match=r"axes.*(give a mapping|an axis is a list)"):
        load_sweep("smoke", [given])


@pytest.mark.parametrize("given", ["axes.seed=[0,1]", "axes={seed: [0,1]}"])
def test_a_single_recipe_says_that_it_has_no_axes(given: str) -> None:
    with pytest.raises(PriorlabError, match=r"a recipe has no axes; .*priorlab sweep"):
        load_recipe("smoke", [given])


def test_the_description_can_be_set_like_any_key() -> None:
    assert load_sweep("smoke", ["description=mine"]).description == "mine"
