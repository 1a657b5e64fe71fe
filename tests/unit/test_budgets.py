"""Gains during RL at equal steps, rollouts and distance from the base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.compare.budgets import equal_budgets
from pipeline.compare.evaluations import Evaluation
from pipeline.report.figures import figures
from pipeline.report.tables import budgets
from pipeline.store.folders import Home
from tests.unit.test_compare import found_in, measured_settings
from tests.unit.test_report import report
from tests.unit.test_statistics import measured

Curve = Sequence[tuple[float, float]]
"""KL and pass@1 at steps 0, 5, 10, ..."""


def validated(home: Home, curves: Mapping[str, Curve], **more: float) -> list[Evaluation]:
    evaluations = measured(dict.fromkeys(curves, 0.05), "rl.validation.every=5")
    for one, curve in zip(evaluations[::2], curves.values(), strict=True):
        folder = one.plan.chain["rl"].folder(home)
        folder.path.mkdir(parents=True)
        rows: list[dict[str, Any]] = [
            {"step": 5 * at, "rollouts_generated": 50 * at, "validation/pass@1": score, "validation/kl_response": kl} | more
            for at, (kl, score) in enumerate(curve)
        ]
        folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return evaluations


def test_at_equal_rollouts_a_setting_that_samples_more_per_step_has_taken_fewer_steps(tmp_path: Path) -> None:
    evaluations = measured({"ce": 0.05, "tail": 0.05}, "rl.validation.every=5")
    for evaluation_, per_step in zip(evaluations[::2], (10, 20), strict=True):
        folder = evaluation_.plan.chain["rl"].folder(Home(tmp_path))
        folder.path.mkdir(parents=True)
        rows = [{"step": s, "rollouts_generated": per_step * s, "validation/pass@1": 0.1 + 0.01 * s} for s in (0, 5, 10)]
        folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 11, "loss": 0.0}]))
    found = equal_budgets(measured_settings(evaluations), Home(tmp_path))
    assert found is not None
    assert (found["steps"], found["rollouts"]) == (10, 100)
    gains = {row["setting"]: [row["sampled"], row["at_steps"], row["at_rollouts"]] for row in found["rows"]}
    assert gains["ce"] == pytest.approx([100, 0.1, 0.1])
    assert gains["tail"] == pytest.approx([200, 0.1, 0.05])
    assert equal_budgets(measured_settings(evaluations[:2]), Home(tmp_path)) is None  # nothing to tell apart


def test_at_equal_kl_the_gain_is_where_a_policy_first_is_as_far_from_its_base(tmp_path: Path) -> None:
    near, far = [(0, 0.1), (1, 0.2), (2, 0.3)], [(0, 0.1), (4, 0.5), (1, 0.9), (6, 0.7)]
    home = Home(tmp_path)
    found = equal_budgets(measured_settings(validated(home, {"ce": near, "tail": far})), home)
    assert found is not None
    assert (found["steps"], found["kl"]) == (10, 2)
    gains = {row["setting"]: row["at_kl"] for row in found["rows"]}
    assert gains["ce"] == pytest.approx(0.2)
    assert gains["tail"] == pytest.approx(0.2)  # half-way to the first validation, where KL passes 2 for the first time
    assert {row["setting"]: row["at_steps"] for row in found["rows"]} == pytest.approx({"ce": 0.2, "tail": 0.8})
    headings, rows = budgets(found)
    assert (headings[-1], [row[-1] for row in rows]) == ("gain at equal KL", ["+.200", "+.200"])


@pytest.mark.parametrize("stays", [[(0, 0.1), (0, 0.1)], [(0, 0.1), (-0.1, 0.2)]], ids=["still", "below 0 by chance"])
def test_a_policy_that_never_left_its_base_leaves_no_kl_in_common(tmp_path: Path, stays: Curve) -> None:
    home = Home(tmp_path)
    evaluations = validated(home, {"ce": stays, "tail": [(0, 0.1), (1, 0.2)]})
    assert equal_budgets(measured_settings(evaluations), home) is None  # both sample alike


@pytest.mark.parametrize("older", [0, 2], ids=["ce", "tail"])
def test_a_cell_without_kl_leaves_only_steps_and_rollouts(tmp_path: Path, older: int) -> None:
    home = Home(tmp_path)
    evaluations = validated(home, {"ce": [(0, 0.1), (1, 0.2)], "tail": [(0, 0.1), (1, 0.2)]})
    log = evaluations[older].plan.chain["rl"].folder(home).metrics
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        del row["validation/kl_response"]
        row["rollouts_generated"] *= 2
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = equal_budgets(measured_settings(evaluations), home)
    assert found is not None
    assert (found["kl"], found["rows"][0]["at_kl"]) == (None, None)
    assert "gain at equal KL" not in budgets(found)[0]


def test_the_report_shows_kl_in_its_table_and_among_the_curves(tmp_path: Path) -> None:
    home = Home(tmp_path)
    curve = [(0, 0.1), (1.25, 0.2)]
    evaluations = validated(home, {"ce": curve, "tail": curve}, **{"validation/kl_token": 0.1, "validation/length": 9})
    page = report(home, evaluations)
    assert "At equal steps, rollouts and distance from the base" in page
    assert "first reaches 1.2 nats per response" in page
    drawn = {figure.title: figure.svg for figure in figures(found_in(evaluations), home)}
    for label in ("steps", "rollouts", "seconds"):
        assert "KL from base per response" in drawn[f"Validation during RL, at equal {label}"]
        assert "KL from base per token" in drawn[f"Validation during RL, at equal {label}"]
