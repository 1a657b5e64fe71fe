"""Contrasts that a sweep declares: judged as a family of their own, told first, and held to what was declared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.findings import findings
from pipeline.compare.power import power_of
from pipeline.compare.summary import summary
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Sweep, load_sweep
from pipeline.experiment.graph import build_graph
from pipeline.experiment.saved import known_sweep, redefinition, save_definition
from pipeline.report.figures import figures
from pipeline.store.folders import Home
from tests.unit.test_compare import NOWHERE, evaluation, plans
from tests.unit.test_statistics import measured

PRIORS = {"ce": 0.0, "tail": 0.2, "head": 0.1}


def sweep(*overrides: str) -> Sweep:
    return load_sweep("quickstart", ["axes.prior=[ce,tail,head]", "axes.seed=[0,1,2]", *overrides])


def test_any_two_settings_are_compared_as_a_family_by_themselves() -> None:
    evaluations = measured(PRIORS, seeds=3)
    cells = [one.plan.cell for one in evaluations[::2]]
    found = findings(cells, evaluations, [("tail", "head")])
    (declared,) = found.differences["declared"]
    assert (declared.setting, declared.reference, declared.quantity.name, declared.family) == ("tail", "head", "pass@1", 1)
    assert declared.interval.value == pytest.approx(0.1, abs=0.01)
    found = findings(cells, evaluations, [("tail", "ce")])
    alone, jointly = (found.differences[kind][0].interval for kind in ("declared", "level"))
    assert alone.value == jointly.value
    assert alone.high - alone.low < jointly.high - jointly.low


def test_they_come_first_in_the_verdict_and_are_in_tables_and_figures() -> None:
    evaluations = measured(PRIORS, seeds=3)
    found = findings([one.plan.cell for one in evaluations[::2]], evaluations, [("tail", "head")])
    told = summary(found, NOWHERE)
    after_rl = [sentence for sentence in told["verdict"] if sentence.startswith(("Along", "No "))]
    assert after_rl[0].startswith("Along declared contrasts, tail ends higher than head in pass@1: +.099 ")
    assert [(one["setting"], one["reference"]) for one in told["declared"]] == [("tail", "head")]
    assert all(one["axis"] == "prior" for one in told["levels"])
    assert "Declared contrasts" in [figure.title for figure in figures(found, NOWHERE)]


def lucky_bases(*overrides: str) -> list[Evaluation]:
    """A sweep of two priors in which all luck is of pre-training: runs from one base end alike, whatever their RL."""
    found = []
    for plan in plans("axes.prior=[ce,tail]", "axes.seed=[0,1,2]", *overrides):
        base = np.random.default_rng(int(plan.chain["pretrain"].fingerprint, 16)).normal(0, 0.05)
        before, after = (evaluation(plan, role, 0.3) for role in ("pretrain", "rl"))
        after.metrics["pass@k"][1] = 0.3 + base + np.random.default_rng(0).normal(0, 0.01, len(after.problems))
        found += [before, after]
    return found


def test_learning_rates_that_share_bases_say_no_more_about_luck_than_one_does() -> None:
    """Else a model that was lucky in pre-training would count as evidence once for each learning rate."""
    rates = [1e-4, 2e-4, 3e-4, 4e-4]
    one, four = lucky_bases(f"axes.rl.optimizer.learning_rate={rates[:1]}"), lucky_bases(f"axes.rl.optimizer.learning_rate={rates}")
    widths = []
    for evaluations in (one, four):
        cells = [measurement.plan.cell for measurement in evaluations[::2]]
        names = [f"{prior} rl.optimizer.learning_rate=0.0001" for prior in ("tail", "ce")]
        (declared,) = findings(cells, evaluations, [(names[0], names[1])]).differences["declared"]
        widths.append(declared.interval.high - declared.interval.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.01)


def test_without_a_difference_the_verdict_says_so() -> None:
    evaluations = measured(dict.fromkeys(PRIORS, 0.1), seeds=3, noise=0.2)
    found = findings([one.plan.cell for one in evaluations[::2]], evaluations, [("tail", "head"), ("tail", "ce")])
    said = summary(found, NOWHERE)["verdict"]
    assert any(
        one.startswith("No setting of a declared contrast is shown to end higher or lower than its reference after RL: all 2 ")
        for one in said
    )


@pytest.mark.parametrize(
    ("contrasts", "message"),
    [
        ("[precision]", r"contrasts of sweep 'quickstart' has 'precision'; give a list of pairs"),
        ("precision", r"contrasts of sweep 'quickstart' has 'precision'"),
        ("[[precision, ce, tail]]", r"has \['precision', 'ce', 'tail'\]"),
        ("[[1, ce]]", r"has \[1, 'ce'\]"),
        ("[[tail, ce], [tail, ce]]", r"has \[tail, ce\] twice"),
    ],
)
def test_what_is_no_list_of_pairs_is_refused(contrasts: str, message: str) -> None:
    with pytest.raises(PriorlabError, match=message):
        sweep(f"contrasts={contrasts}")


@pytest.mark.parametrize(
    ("contrasts", "message"),
    [
        (
            "[[tails, ce]]",
            r"contrasts has \[tails, ce\], which names 'tails', which is not a setting of this sweep; there are: ce, tail, head",
        ),
        ("[[tail, tail]]", r"contrasts has \[tail, tail\], which names 'tail' twice"),
    ],
)
def test_names_must_be_those_of_two_settings(contrasts: str, message: str) -> None:
    planned = sweep(f"contrasts={contrasts}")
    with pytest.raises(PriorlabError, match=message):
        power_of(list(planned.cells()), NOWHERE, planned.contrasts)


def test_the_plan_counts_declared_contrasts_alone(tmp_path: Path) -> None:
    cells = list(sweep().cells())
    every, one = (power_of(cells, Home(tmp_path), contrasts) for contrasts in ((), (("tail", "ce"),)))
    assert every is not None
    assert one is not None
    assert (every.comparisons, one.comparisons) == (10, 1)  # two settings: pass@1, 8 and 64, greedy and votes
    assert one.detectable() < every.detectable()


def test_they_are_kept_with_the_sweep_and_a_change_is_noted(tmp_path: Path) -> None:
    home, declared = Home(tmp_path), sweep("contrasts=[[tail, ce], [tail, head]]")
    home.sweep("quickstart").mkdir(parents=True)
    save_definition(declared, build_graph(declared.cells()), home)
    assert known_sweep("quickstart", home).contrasts == (("tail", "ce"), ("tail", "head")) == declared.contrasts
    assert redefinition(declared, home) == []
    assert redefinition(sweep("contrasts=[[head, ce]]"), home) == ["its contrasts are not those declared before"]


def test_contrasts_decide_no_stage() -> None:
    with_, without = (build_graph(sweep(*more).cells()) for more in (["contrasts=[[tail, ce]]"], []))
    assert with_.stages.keys() == without.stages.keys()
