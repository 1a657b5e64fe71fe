"""A cell whose measurements are NaN or infinite is named, and hides no other cell."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from pipeline.cli.terminal import print_json
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import perplexity
from pipeline.compare.summary import summary
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.comparison import log_comparison
from tests.unit.stores import Shelf, shelf_at
from tests.unit.test_compare import NOWHERE, evaluation, found_in, plans
from tests.unit.test_compare_commands import stored
from tests.unit.test_statistics import measured
from tests.wandb_files import read_runs

PRIORS = {"ce": 0.0, "tail": 0.1, "head": 0.05, "precision": 0.0}
OVERRIDES = (f"axes.prior=[{','.join(PRIORS)}]", "axes.seed=[0]", "evaluate.samples=8")


Spoil = Callable[[Evaluation], Evaluation]


def heldout(value: float) -> Spoil:
    return lambda one: replace(one, heldout={name: np.full(10, value) for name in one.heldout})


def no_pass(one: Evaluation) -> Evaluation:
    return replace(one, metrics=one.metrics | {"pass@k": {k: np.full_like(v, np.nan) for k, v in one.metrics["pass@k"].items()}})


SPOILT = {"NaN": heldout(np.nan), "infinite": heldout(np.inf), "perplexity overflows": heldout(1000.0), "no pass@k": no_pass}
every_way = pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)


def with_bad(spoil: Spoil, after: str = "pretrain", priors: tuple[str, ...] = ("tail",)) -> list[Evaluation]:
    of_sweep = measured(PRIORS, "evaluate.samples=8")
    return [spoil(one) if one.after == after and one.plan.cell.recipe.prior.name in priors else one for one in of_sweep]


def home_with(path: Path, evaluations: list[Evaluation]) -> Shelf:
    shelf = shelf_at(path)
    stored(shelf, [(one.plan.evaluations[one.after], one) for one in evaluations], *OVERRIDES)
    return shelf


def strict(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@every_way
@pytest.mark.parametrize("after", ["pretrain", "rl"])
def test_every_command_shows_the_other_cells_and_names_the_bad_one(tmp_path: Path, spoil: Spoil, after: str) -> None:
    shelf = home_with(tmp_path, with_bad(spoil, after))
    named = f"Not finite, so left out: tail-seed0 after {after} ("
    for options in ([], ["--bayes"], ["--sort", "perplexity"], ["--sort", "gain@8"]):
        shown = shelf.call("report", "mine", *options)
        assert shown.exit_code == 0, shown.output
        assert named in shown.output
        assert all(f"\n{prior} " in shown.output for prior in ("ce", "head", "precision"))
        assert "Unfinished" not in shown.output
    told = strict(shelf.call("report", "mine", "--json").output)
    finished = [row["setting"] for row in told["rows"] if row["pass@1"]["gain"]]
    assert finished == ["ce", "head", "precision"]
    assert {one["setting"] for one in told["differences"]} == {"head", "precision"}
    assert "nan" not in shelf.call("report", "mine", "--csv").output.lower()
    assert ",inf" not in shelf.call("report", "mine", "--csv").output
    assert shelf.call("status", "mine").exit_code == 0
    strict(shelf.call("status", "mine", "--json").output)
    page = (shelf.home.sweep("mine") / "report.html").read_text()
    assert named in page
    both = shelf.call("compare", "mine", "mine")
    assert both.exit_code == 0, both.output
    assert "tail" not in "".join(line for line in both.output.splitlines() if not line.startswith("note:"))
    assert f"note: mine: {named}" in both.output


def test_a_bad_reference_is_named_where_nothing_is_compared_with_it() -> None:
    said = " ".join(summary(found_in(with_bad(heldout(np.nan), priors=("ce",))), NOWHERE)["verdict"])
    assert "Not finite, so left out: ce-seed0 after pretrain (cross_entropy, entropy, head_mass, tail_mass)." in said
    assert "Along prior, nothing is compared with ce yet (not finite)." in said
    assert "Unfinished" not in said


def test_of_two_seeds_the_good_one_counts_and_the_bad_one_is_not_unfinished() -> None:
    evaluations = measured({"ce": 0.0, "tail": 0.1}, seeds=2)
    evaluations[6] = heldout(np.nan)(evaluations[6])  # before RL, tail, seed 1
    found = found_in(evaluations)
    said = " ".join(summary(found, NOWHERE)["verdict"])
    assert [setting.seeds for setting in found.settings] == [[0, 1], [0]]
    assert "Not finite, so left out: tail-seed1 after pretrain (" in said
    assert "Unfinished" not in said


def test_if_all_are_bad_report_names_them(tmp_path: Path) -> None:
    shelf = home_with(tmp_path, with_bad(heldout(np.nan), priors=tuple(PRIORS)))
    assert "Not finite, so left out: ce-seed0 after pretrain (" in shelf.refusal("report", "mine")
    assert "perplexity" in shelf.call("report", "mine", "--csv").output


def test_a_bad_checkpoint_along_the_way_is_named_by_its_step_and_leaves_the_cell_in() -> None:
    (plan,) = plans("axes.prior=[ce]", "pretrain.evaluate_at=[0.25]")
    ((_, step),) = plan.milestones
    early = replace(heldout(np.nan)(evaluation(plan, "pretrain", 0.5)), milestone=True, step=step)
    found = found_in([early, evaluation(plan, "pretrain", 0.5), evaluation(plan, "rl", 0.6)])
    assert [setting.name for setting in found.settings if setting.finished] == ["ce"]
    assert f"Not finite, so left out: ce-seed0 at step {step} of pretrain (" in " ".join(summary(found, NOWHERE)["verdict"])


@every_way
def test_the_summary_run_in_wandb_holds_numbers_only(tmp_path: Path, spoil: Spoil) -> None:
    evaluations = with_bad(spoil)
    told = summary(found_in(evaluations), NOWHERE)
    log_comparison("mine", TrackingConfig(mode="offline"), tmp_path, evaluations, told, "mine-1")
    (run,) = read_runs(tmp_path)
    assert "Not finite, so left out: tail-seed0" in run.summary["verdict"]
    numbers = {key: value for key, value in run.summary.items() if key.startswith(("gain/", "entropy/", "perplexity/"))}
    assert {key.split("/")[1] for key in numbers} == {"ce", "head", "precision"}
    assert np.isfinite(list(numbers.values())).all()
    (curves,) = (table for file in tmp_path.rglob("*.table.json") if "pass@k" in (table := json.loads(file.read_text()))["columns"])
    drawn = {(row[1], row[4]) for row in curves["data"]}
    assert drawn == {(one.plan.cell.id, one.after) for one in evaluations} - {("tail-seed0", "pretrain")}


def test_an_interval_that_overflows_keeps_its_value() -> None:
    far = perplexity(np.array([600.0, 700.0, 650.0, 500.0, 1000.0, 640.0]))
    assert np.isfinite(far.value)
    assert far.as_dict()["high"] is None


def test_json_for_programs_has_null_for_what_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), {"b": float("-inf")}], "c": (1.5, None), "d": np.float64("inf")})
    assert strict(capsys.readouterr().out) == {"a": [None, {"b": None}], "c": [1.5, None], "d": None}
