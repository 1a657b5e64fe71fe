"""Where RL starts: one pre-training for all starts, gains against its tokens, and settings compared where their bases are alike."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.measured import Quantity
from pipeline.compare.predictors import cell_points
from pipeline.compare.results import result_rows
from pipeline.compare.starts import at_equal_bases, curves
from pipeline.compare.summary import summary
from pipeline.config.stages import EvaluateStage, RLStage
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe, load_sweep
from pipeline.experiment.graph import CellPlan, Graph, build_graph
from pipeline.tracking.comparison import log_comparison
from tests.unit.stores import Shelf, shelf_at
from tests.unit.test_compare import NOWHERE, evaluation, found_in
from tests.unit.test_compare_commands import AXES, stored

STARTS = ("axes.rl.start=[0.25,0.5,1]", "pretrain.evaluate_at=[0.1,0.25,0.5]")
PASS_1 = Quantity("pass@k", 1)
PROBLEMS = 200


def graph(*overrides: str) -> Graph:
    return build_graph(load_sweep("quickstart", ["axes.prior=[ce,tail]", *STARTS, *overrides]).cells())


# One pre-training


def test_all_starts_of_a_setting_share_one_pretraining_and_its_evaluations() -> None:
    cells = graph("axes.prior=[ce]").cells
    assert len({plan.chain["pretrain"].fingerprint for plan in cells}) == 1
    steps = []
    for plan in cells:
        policy, before = plan.chain["rl"].config, plan.evaluations["pretrain"].config
        assert isinstance(policy, RLStage)
        assert isinstance(before, EvaluateStage)
        assert policy.step == before.step
        steps.append((policy.step, [step for _, step in plan.milestones]))
    assert steps == [(250, [100]), (500, [100, 250]), (None, [100, 250, 500])]
    assert cells[0].evaluations["pretrain"] is cells[1].milestones["pretrain", 250]


def test_rl_from_the_last_checkpoint_is_what_it_was() -> None:
    (plan,) = build_graph(load_recipe("quickstart").cells()).cells
    (said,) = build_graph(load_recipe("quickstart", ["rl.start=1.0"]).cells()).cells
    (nearly,) = build_graph(load_recipe("quickstart", ["rl.start=0.9999"]).cells()).cells  # the last step
    assert {one.chain["rl"].fingerprint for one in (plan, said, nearly)} == {plan.chain["rl"].fingerprint}
    assert {"start", "step"}.isdisjoint(plan.chain["rl"].config.identity() | plan.chain["rl"].config.identity()["rl"])


def test_starts_are_evaluated_on_every_set() -> None:
    plan = graph("axes.prior=[ce]", "evaluate.sets=[task, parity]").cells[0]
    assert [(role, step, list(on_sets)) for role, step, on_sets in plan.measurements()] == [
        (role, step, ["countdown", "parity"]) for role, step in (("pretrain", 100), ("pretrain", None), ("rl", None))
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl.start=0.25"], "rl.start is 0.25, step 250 of pre-training, which is not among the checkpoints it keeps (none"),
        (["rl.start=0.3", "pretrain.evaluate_at=[0.25]"], "it keeps (250); list all starts in pretrain.evaluate_at"),
        (["rl.start=0.5", "pretrain.evaluate_at=[0.5]", "midtrain=countdown"], "mid-training continues from the end of pre-training"),
        (["rl.start=0.5", f"pretrain.adopted=sha256:{'ab' * 32}"], "an adopted checkpoint (pretrain.adopted) has no earlier ones"),
        (["rl.start=0"], "rl.start"),
        (["rl.start=1.5"], "rl.start"),
    ],
)  # fmt: skip
def test_a_start_that_there_is_no_checkpoint_for_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(PriorlabError, match=re.escape(message)):
        list(load_recipe("quickstart", overrides).cells())


# What is measured from each


def along(plans: list[CellPlan], of: dict[str, tuple[float, float]], *, seed_noise: float = 0.0, draw: int = 0) -> list[Evaluation]:
    """Bases improve with tokens, by `of[prior]`: pass@1 is tokens' share x the first number, and ends the second number above."""
    found = []
    for plan in plans:
        recipe = plan.cell.recipe
        assert recipe.rl is not None
        speed, lift = of[recipe.prior.name]
        rng = np.random.default_rng([draw, recipe.seed, round(1000 * recipe.rl.start), len(recipe.prior.name)])
        difficulty = np.random.default_rng(draw).normal(0, 0.1, PROBLEMS)
        shift = rng.normal(0, seed_noise)
        rate = 0.1 + speed * recipe.rl.start
        for after, level in (("pretrain", rate), ("rl", rate + lift)):
            one = evaluation(plan, after, 1.0, problems=PROBLEMS)
            values = level + difficulty + shift + rng.normal(0, 0.02, PROBLEMS)
            entropy = one.heldout["entropy"] + 2 - recipe.rl.start + rng.normal(0, 0.01, 10)
            step = recipe.start_step or recipe.pretrain.steps
            metrics = one.metrics | {"pass@k": {1: values, 8: values}, "avg@n": {8: values}}
            found.append(replace(one, metrics=metrics, heldout=one.heldout | {"entropy": entropy}, step=step))
    return found


FAST = {"ce": (0.2, 0.1), "tail": (0.4, 0.1)}
"""Tail comes further in as many tokens, and RL adds the same from a base as good."""


def test_a_prior_that_only_comes_further_in_as_many_tokens_ends_alike_from_a_base_as_good() -> None:
    found = found_in(along(graph().cells, FAST))
    ended = {one.setting: one.interval for one in found.differences["level"] if one.quantity == PASS_1 and one.axis == "prior"}
    assert all(interval.shown for interval in ended.values())  # at equal tokens, it ends higher
    (early,) = at_equal_bases(curves(found.settings), "pass@1", [PASS_1])
    assert (early.setting, early.start, early.reference) == ("tail", 0.25, "ce")  # later, it is beyond all bases of its reference
    assert early.at == pytest.approx(0.2, abs=0.02)
    assert early.reference_tokens == pytest.approx(2 * 250 * 16 * 64, rel=0.2)  # twice the tokens
    assert early.interval.value == pytest.approx(0, abs=0.01)
    assert not early.interval.shown


def test_at_equal_entropy_the_base_s_pass_at_1_may_differ() -> None:
    found = at_equal_bases(curves(found_in(along(graph().cells, FAST)).settings), "entropy", [PASS_1, Quantity("pass@k", 8)])
    assert [(one.start, one.quantity.k, one.family) for one in found] == [(at, k, 6) for at in (0.25, 0.5, 1.0) for k in (1, 8)]
    for one in found:  # entropy falls alike in both, so the same entropy is the same number of tokens
        assert one.interval.value == pytest.approx(0.2 * one.start, abs=0.02)
        assert one.interval.shown


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_at_equal_bases_knows_that_bases_are_measured(seeds: int) -> None:
    """RL raises both alike from a base as good. Were the match taken as known, intervals would miss 0 far too often."""
    plans = graph(f"axes.seed={list(range(seeds))}").cells
    missed = draws = 0.0
    for draw in range(150):
        rng = np.random.default_rng([draw, 7])
        evaluations = []
        for one in along(plans, {"ce": (0.2, 0.1), "tail": (0.25, 0.1)}, seed_noise=0.01, draw=draw):
            noise = rng.normal(0, 0.1, len(one.problems)) if one.after == "pretrain" else np.zeros(len(one.problems))
            values = one.metrics["pass@k"][1] + noise
            evaluations.append(replace(one, metrics=one.metrics | {"pass@k": {1: values, 8: values}}))
        for told in at_equal_bases(curves(found_in(evaluations).settings), "pass@1", [PASS_1]):
            draws, missed = draws + 1 / told.family, missed + told.interval.shown / told.family
    assert draws > 50
    assert missed / draws <= 0.06


def test_bases_of_different_starts_are_different_bases() -> None:
    points = cell_points(found_in(along(graph().cells, FAST)).settings)
    assert len(set(points.bases)) == 6


def test_results_have_the_step_and_the_tokens_that_rl_starts_from() -> None:
    evaluations = along(graph("axes.prior=[ce]").cells, FAST)
    assert [one.tokens for one in evaluations if one.after == "rl"] == [share * 1000 * 16 * 64 for share in (0.25, 0.5, 1)]
    steps = {row["cell"]: row["step"] for row in result_rows("mine", evaluations) if row["after"] == "pretrain"}
    assert list(steps.values()) == [250, 500, 1000]


# Where it is shown


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = shelf_at(tmp_path_factory.mktemp("starts"))
    overrides = (*STARTS, "evaluate.samples=8")
    plans = build_graph(load_sweep("quickstart", [*AXES, "tracking.mode=disabled", *overrides]).cells()).cells
    stored(shelf, [(one.plan.evaluations[one.after], one) for one in along(plans, FAST)], *overrides)
    return shelf


def test_the_report_the_terminal_and_json_show_every_start(shelf: Shelf) -> None:
    shown = shelf.call("report", "mine").output
    assert re.search(r"\nce +0\.25 +256k +2\.\d{4} +\.\d{3} +\.\d{3} +\+\.\d{3} \[", shown)
    assert re.search(r"\ntail +0\.25 +ce +\S+ +pass@1 \.\d{3} +\S\.\d{3} \[", shown)
    told = shelf.json("report", "mine", "--filter", "tail")["starts"]
    assert [(row["setting"], row["start"], row["tokens"]) for row in told["rows"]] == [
        ("tail", at, at * 1_024_000) for at in (0.25, 0.5, 1.0)
    ]
    assert {one["matched"] for one in told["matched"]} == {"pass@1", "entropy"}
    page, text = ((shelf.home.sweep("mine") / name).read_text() for name in ("report.html", "report.md"))
    for title in (
        "By where RL starts",
        "Where RL ends, from matched bases, compared",
        "What RL gains against tokens of pre-training",
    ):
        assert title in page
        assert title in text


def test_wandb_has_gains_against_tokens_and_comparisons_at_equal_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = found_in(along(graph().cells, FAST))
    told = summary(found, NOWHERE)
    log_comparison("mine", TrackingConfig(), tmp_path, found.evaluations, told, "mine-1")
    tables = {}
    for name in ("starts", "gain_against_tokens", "equal_bases"):
        (file,) = tmp_path.glob(f"wandb/**/{name}*.table.json")
        table = json.loads(file.read_text())
        tables[name] = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    drawn = [(row["setting"], row["tokens"]) for row in tables["gain_against_tokens"]]
    assert drawn == [(name, at * 256_000) for name in ("ce", "tail") for at in (1, 2, 4)]
    assert {row["metric"] for row in tables["starts"]} == {"pass@1", "pass@8"}
    assert [row["value"] for row in tables["equal_bases"]] == pytest.approx([one["value"] for one in told["starts"]["matched"]])


def test_without_several_starts_there_is_no_such_table() -> None:
    plans = graph("axes.rl.start=[0.25]").cells
    assert summary(found_in(along(plans, FAST)), NOWHERE)["starts"] is None
    assert summary(found_in([evaluation(plan, "pretrain", 0.5) for plan in plans]), NOWHERE)["starts"] is None
    assert Path("nowhere").exists() is False
