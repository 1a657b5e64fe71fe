"""Evaluation sets: what they leave alone, how their mean is estimated, and where each of them is shown."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.analysis import load_sweep_results
from pipeline.compare.evaluations import Evaluation, _joined, load_evaluations
from pipeline.compare.intervals import Sample, bayesian_gain, components, joint_intervals, mean_interval
from pipeline.compare.measured import Quantity
from pipeline.compare.power import measured_spreads, power_of
from pipeline.compare.problems import changed_problems, cover
from pipeline.compare.sets import as_telling_as, averaged
from pipeline.compare.summary import summary
from pipeline.config.stages import EvaluateStage
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe, load_sweep
from pipeline.experiment.graph import CellPlan, build_graph
from pipeline.tracking.comparison import log_comparison
from tests.unit.stores import Shelf, shelf_at
from tests.unit.test_compare import NOWHERE, evaluation, found_in
from tests.unit.test_compare_commands import AXES, stored
from tests.wandb_files import read_runs

HARDER = "{task: {use: countdown, numbers: [4], name: harder}, problems: 10}"
SETS = f"evaluate.sets=[task, {HARDER}]"


def plan_of(*overrides: str, recipe: str = "quickstart") -> CellPlan:
    (plan,) = build_graph(load_recipe(recipe, overrides).cells()).cells
    return plan


def refusal(*overrides: str) -> str:
    with pytest.raises(PriorlabError) as refused:
        plan_of(*overrides)
    return str(refused.value)


# What is evaluated, and what depends on it


def test_a_further_set_is_one_more_stage_per_checkpoint_and_runs_nothing_else_again() -> None:
    before, after = plan_of("pretrain.evaluate_at=[0.5]"), plan_of("pretrain.evaluate_at=[0.5]", SETS)
    old, new = ({node.fingerprint for node in plan.stages()} for plan in (before, after))
    assert old < new
    assert len(new - old) == 3  # of pre-training halfway and at its end, and of RL
    assert [(role, step, list(on_sets)) for role, step, on_sets in after.measurements()] == [
        ("pretrain", 500, ["countdown", "harder"]),
        ("pretrain", None, ["countdown", "harder"]),
        ("rl", None, ["countdown", "harder"]),
    ]


def test_a_set_has_its_own_problems_and_their_number_and_the_protocol_of_all() -> None:
    config = plan_of(SETS, "evaluate.samples=16").further["rl", None]["harder"].config
    assert isinstance(config, EvaluateStage)
    assert (config.task.identity()["numbers"], config.evaluate.problems, config.evaluate.samples) == ([4], 10, 16)
    assert config.evaluate.sets == ()


def test_benchmarks_of_the_harness_run_once_per_checkpoint() -> None:
    plan = plan_of(SETS, "evaluate.harness={tasks: [arc_easy]}")
    nodes = [node.config for _, _, on_sets in plan.measurements() for node in on_sets.values()]
    assert [isinstance(one, EvaluateStage) and one.evaluate.harness is not None for one in nodes] == [True, False, True, False]


def test_sets_are_named_in_the_files_of_tasks() -> None:
    recipe = plan_of("evaluate.sets=[parity, {task: arithmetic, problems: 7}]", "model.max_positions=512").cell.recipe
    assert {name: protocol.problems for name, (_, protocol) in recipe.evaluation_sets.items()} == {"parity": 128, "arithmetic": 7}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("[task, task]", "evaluate.sets has countdown, countdown, but 'countdown' names two of them; give a set another name"),
        ("[{task: {use: parity, name: average}}]", "'average' stands for the mean over sets"),
        ("[countdwn]", "there is no task 'countdwn'; did you mean 'countdown'?"),
        ("[{use: parity}]", "evaluate.sets.0"),
        ("[{task: parity, problems: 0}]", "evaluate.sets.0.problems"),
        ("[math500]", "lower evaluate.sets.0.task.max_prompt_tokens or max_response_tokens"),
        ("countdown", "evaluate.sets"),
    ],
)
def test_a_list_of_sets_that_cannot_be_is_refused_with_its_key(sets: str, message: str) -> None:
    assert message in refusal(f"evaluate.sets={sets}")


def test_the_paper_is_evaluated_on_its_six_sets_and_trained_without_them() -> None:
    plan = plan_of("seed=0", recipe="paper_4b")
    counts = {name: protocol.problems for name, (_, protocol) in plan.cell.recipe.evaluation_sets.items()}
    assert counts == {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 674}
    assert all(plan.cell.recipe.task.keeps_apart(task) for task, _ in plan.cell.recipe.evaluation_sets.values())
    fewer = plan_of("evaluate.sets=[math500]", recipe="paper_4b")
    assert fewer.chain["rl"].fingerprint == plan.chain["rl"].fingerprint
    assert (
        fewer.evaluations["rl"].fingerprint
        == plan_of("evaluate.sets=[{task: math500, problems: 30}]", recipe="paper_4b").evaluations["rl"].fingerprint
    )


# What training must not see


@pytest.fixture
def sums(tmp_path: Path) -> dict[str, str]:
    """Datasets by name: the first ten problems of `train` are also in `known`."""
    of = {"train": range(200), "known": range(10), "other": range(1000, 1010)}
    files = {}
    for name, numbers in of.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"problem": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in numbers))
        files[name] = str(path)
    return files


def math(sums: dict[str, str], **sources: str) -> str:
    """A task that trains on `train`; the others by the names of datasets, `held_out` several with spaces between."""
    task: dict[str, Any] = {"kind": "math", "max_prompt_tokens": 32, "train": {"file": sums["train"]}}
    if "evaluate" in sources:
        task["evaluate"] = {"file": sums[sources["evaluate"]]}
    if "held_out" in sources:
        task["held_out"] = [{"file": sums[name]} for name in sources["held_out"].split()]
    file = Path(sums["train"]).with_name("mine.yaml")
    file.write_text(yaml.safe_dump(task))
    return f"task={file}"


def fingerprints(*overrides: str) -> dict[str, str]:
    plan = plan_of("rl.rewordings=false", "corpus.tokenizer={kind: bpe, vocab_size: 300}", *overrides)
    return {role: node.fingerprint for role, node in plan.chain.items()} | {"evaluate": plan.evaluations["rl"].fingerprint}


def test_with_declared_problems_what_is_evaluated_is_no_part_of_rl(sums: dict[str, str]) -> None:
    first, second = (fingerprints(math(sums, held_out="known", evaluate=name)) for name in ("known", "other"))
    assert first["rl"] == second["rl"]
    assert first["evaluate"] != second["evaluate"]
    less = fingerprints(math(sums, held_out="", evaluate="known"))
    assert less["rl"] != first["rl"]  # it may train on more


def test_without_them_what_is_evaluated_is_kept_apart_as_ever(sums: dict[str, str]) -> None:
    first, second = (fingerprints(math(sums, evaluate=name)) for name in ("known", "other"))
    assert first["rl"] != second["rl"]
    assert "held_out" not in plan_of(math(sums), "rl.rewordings=false").chain["rl"].config.identity()["task"]


def test_held_out_problems_can_be_named_by_their_tasks_and_only_if_these_have_any() -> None:
    recipe = plan_of("task={use: dapo-math, held_out: [math500]}", "model.max_positions=2048").cell.recipe
    (source,) = recipe.task.kept_from_training  # type: ignore[union-attr]
    assert (source.hub, source.split, source.problem) == ("HuggingFaceH4/MATH-500", "test", "problem")
    message = refusal("task={use: dapo-math, held_out: [countdown]}", "model.max_positions=2048")
    assert "task.held_out has 'countdown', a task without a dataset to evaluate on" in message


@pytest.mark.parametrize(("name", "apart"), [("known", True), ("other", False)])
def test_only_a_set_that_the_configs_keep_apart_is_not_looked_at(sums: dict[str, str], name: str, apart: bool) -> None:
    benchmark = f"{{kind: math, name: {name}, max_prompt_tokens: 32, evaluate: {{file: {sums[name]}}}}}"
    plan = plan_of(math(sums, held_out="known"), "rl.rewordings=false", f"evaluate.sets=[{{task: {benchmark}, problems: 5}}]")
    after, before = (plan.evaluations[role].config for role in ("rl", "pretrain"))
    assert isinstance(after, EvaluateStage)
    assert isinstance(before, EvaluateStage)
    assert (after.trained_on is None) is apart
    assert (after.trained_splits, before.trained_splits) == (((), ()) if apart else (("corpus", "rl"), ("corpus",)))
    assert not {"trained_on", "trained_splits"} & after.identity().keys()


@pytest.mark.parametrize(("held_out", "apart"), [({}, True), ({"held_out": "known"}, True), ({"held_out": "other"}, False)])
def test_neither_is_what_the_task_itself_evaluates_on(sums: dict[str, str], held_out: dict[str, str], apart: bool) -> None:
    config = plan_of(math(sums, evaluate="known", **held_out), "rl.rewordings=false").evaluations["rl"].config
    assert isinstance(config, EvaluateStage)
    assert (config.trained_on is None) is apart


# The mean over sets


def test_values_have_the_mean_over_sets_and_the_variance_of_stratified_sampling() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.random(size) * scale for size, scale in ((8, 1.0), (40, 0.2), (300, 0.5))]
    values = averaged(parts)
    assert values.mean() == pytest.approx(np.mean([part.mean() for part in parts]))
    assert values.var(ddof=1) / len(values) == pytest.approx(sum(part.var(ddof=1) / len(part) for part in parts) / len(parts) ** 2)
    assert averaged([parts[0]]) is parts[0]


def test_values_are_linear_so_that_differences_can_be_taken_first_or_last() -> None:
    rng = np.random.default_rng(1)
    one, other = ([rng.random((3, size)) for size in (6, 20)] for _ in range(2))
    first = averaged([a - b for a, b in zip(one, other, strict=True)])
    assert averaged(one) - averaged(other) == pytest.approx(first)


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_interval_covers_the_mean_over_sets_of_any_sizes(seeds: int) -> None:
    """Few hard problems and many easy ones: as one set, the few would hardly count."""
    sizes, rates, spread = (6, 30, 400), (0.1, 0.4, 0.8), (0.3, 0.2, 0.05)
    rng, draws, covered = np.random.default_rng(2), 400, 0.0
    for _ in range(draws):
        parts = []
        luck = rng.normal(0, 0.05, (seeds, 1))
        for size, rate, width in zip(sizes, rates, spread, strict=True):
            parts.append(rate + luck + rng.normal(0, width, size) + rng.normal(0, 0.1, (seeds, size)))
        found = mean_interval(averaged(parts) if seeds > 1 else averaged(parts) - luck, sizes)
        covered += found.low <= np.mean(rates) <= found.high
    assert 0.92 <= covered / draws <= (0.98 if seeds == 1 else 1.0)


def test_a_few_problems_decide_how_well_the_variance_is_known() -> None:
    rng = np.random.default_rng(3)
    wide, narrow = rng.normal(0, 1, 6), rng.normal(0, 0.01, 400)
    assert components(averaged([wide, narrow])[None], (6, 400)).problems.freedom == pytest.approx(5, abs=0.1)
    assert components(wide[None]).problems.freedom == 5
    assert np.isnan(mean_interval(averaged([wide[:3], narrow]), (3, 400)).low)  # three problems tell nothing about their set


def test_means_over_different_sets_are_not_taken_to_correlate() -> None:
    """Two sets of equal size: as means over the same problems, they would need hardly more than one interval's width."""
    values = np.random.default_rng(4).normal(0, 1, (1, 50))
    same = joint_intervals([Sample(values), Sample(values)])
    apart = joint_intervals([Sample(values, of="a"), Sample(values, of="b")])
    assert same[0].high == pytest.approx(mean_interval(values).high, rel=0.01)
    assert apart[0].high > 1.1 * same[0].high - 0.1 * same[0].value


def test_a_mean_over_sets_is_as_exact_as_one_over_so_many_problems() -> None:
    assert as_telling_as([30]) == 30
    assert as_telling_as([50, 50]) == pytest.approx(100)
    assert as_telling_as([30, 30, 40, 500, 272, 674]) == pytest.approx(364, abs=1)


def on_sets(plan: CellPlan, after: str, rates: dict[str, tuple[int, float]]) -> dict[str, Evaluation]:
    """By set, an evaluation of so many problems with this pass@1, which some problems share before and after RL."""
    found = {}
    for number, (name, (problems, rate)) in enumerate(rates.items()):
        one = evaluation(plan, after, rate, seed=number, problems=problems)
        votes = {"cons@n": {8: one.metrics["greedy"][1]}, "distinct_answers": {8: 1 + one.metrics["avg@n"][8]}}
        counted = np.round(one.metrics["avg@n"][8] * 8) / 8
        found[name] = replace(one, metrics=one.metrics | votes | {"avg@n": {8: counted}})
    return found


RATES = {
    ("ce", "pretrain"): {"countdown": (40, 0.4), "harder": (10, 0.1)},
    ("ce", "rl"): {"countdown": (40, 0.5), "harder": (10, 0.2)},
    ("tail", "pretrain"): {"countdown": (40, 0.4), "harder": (10, 0.1)},
    ("tail", "rl"): {"countdown": (40, 0.9), "harder": (10, 0.2)},
}
OVERRIDES = (SETS, "evaluate.samples=8", "evaluate.problems=40")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = shelf_at(tmp_path_factory.mktemp("sets"))
    graph = build_graph(load_sweep("quickstart", [*AXES, "tracking.mode=disabled", *OVERRIDES]).cells())
    found = [
        (node, on_sets(plan, after, RATES[plan.cell.recipe.prior.name, after])[name])
        for plan in graph.cells
        for after, _, nodes in plan.measurements()
        for name, node in nodes.items()
    ]
    stored(shelf, found, *OVERRIDES)
    return shelf


def loaded(shelf: Shelf) -> list[Evaluation]:
    graph = build_graph(load_sweep("quickstart", [*AXES, "tracking.mode=disabled", *OVERRIDES]).cells())
    return load_evaluations(graph, shelf.home)


def test_an_evaluation_on_several_sets_is_their_mean(shelf: Shelf) -> None:
    for one in loaded(shelf):
        for metric, k in (("pass@k", 1), ("pass@k", 8), ("greedy", 1), ("length", 8)):
            assert one.values(metric, k).mean() == pytest.approx(np.mean([on.values(metric, k).mean() for on in one.sets.values()]))
        assert (one.sizes, len(one.problems), one.problems[40]) == ((40, 10), 50, "harder/p0")


def test_a_checkpoint_that_lacks_a_set_is_left_out_until_it_is_measured(shelf: Shelf, tmp_path: Path) -> None:
    graph = build_graph(load_sweep("quickstart", [*AXES, *OVERRIDES]).cells())
    node = graph.cells[0].evaluations["pretrain"]
    begun = shelf_at(tmp_path)
    stored(begun, [(node, on_sets(graph.cells[0], "pretrain", RATES["ce", "pretrain"])["countdown"])], *OVERRIDES)
    assert load_evaluations(graph, begun.home) == []
    assert "has no finished evaluation yet" in begun.refusal("report", "mine")


def test_what_counts_problems_is_counted_set_by_set(shelf: Shelf) -> None:
    """Shares of problems are not linear in the values that carry the mean; each is compared with the mean of its two sets."""
    found = found_in(loaded(shelf))
    setting = next(one for one in found.settings if one.name == "tail")
    before, after = setting.before[0].sets, setting.after[0].sets

    def over(of: Any) -> float:
        return float(np.mean([of(before[name].values("avg@n", 8), after[name].values("avg@n", 8)) for name in before]))

    told = changed_problems(setting)
    assert told is not None
    assert told["lost"]["value"] == pytest.approx(over(lambda had, has: ((had > 0) & (has == 0)).mean()))
    assert told["gained"]["value"] == pytest.approx(over(lambda had, has: ((has > 0) & (had == 0)).mean()))
    assert cover(setting, 0.5)[1].value == pytest.approx(over(lambda had, has: (has >= 0.5).mean()))
    at = found.points.settings.index("tail")
    assert found.points.measured["pass@n"][at] == pytest.approx(over(lambda had, has: (had > 0).mean()))
    credible = setting.bayesian_gain()
    first, second = ([np.round(one.values("avg@n", 8) * 8)[None] for one in side.values()] for side in (before, after))
    assert credible == bayesian_gain(first, second, 8)
    alone = [bayesian_gain([one], [other], 8).value for one, other in zip(first, second, strict=True)]
    assert credible is not None
    assert credible.value == pytest.approx(np.mean(alone))


def test_gains_and_differences_come_for_the_mean_and_in_a_family_of_their_own_for_each_set(shelf: Shelf) -> None:
    found = found_in(loaded(shelf))
    mean = {one.quantity: one for one in found.differences["level"]}
    each = {one.quantity: one for one in found.on_sets.differences["level"]}
    assert {one.family for one in mean.values()} == {4}  # two k, greedy and the vote
    assert {one.family for one in each.values()} == {8}
    pass_1 = Quantity("pass@k", 1)
    assert mean[pass_1].interval.value == pytest.approx(
        np.mean([each[replace(pass_1, of_set=name)].interval.value for name in ("countdown", "harder")])
    )
    assert each[replace(pass_1, of_set="countdown")].interval.shown
    assert not each[replace(pass_1, of_set="harder")].interval.shown  # the same rate on the same problems
    gained = found.on_sets.gains["tail", replace(pass_1, of_set="harder")]
    assert gained.value == pytest.approx(0.1 * np.random.default_rng(1).random(10).mean())


def test_with_one_set_nothing_is_told_set_by_set() -> None:
    plans = build_graph(load_sweep("quickstart", AXES).cells()).cells
    found = found_in([evaluation(plan, after, 0.5) for plan in plans for after in ("pretrain", "rl")])
    assert summary(found, NOWHERE)["sets"] is None
    assert found.on_sets.shown == []


# Where it is shown


def test_results_have_rows_for_the_mean_and_for_each_set(shelf: Shelf) -> None:
    rows = list(csv.DictReader(io.StringIO(shelf.call("report", "mine", "--csv").stdout)))  # W&B writes to stderr
    at_1 = {
        (row["cell"], row["task"]): float(row["value"])
        for row in rows
        if (row["metric"], row["k"], row["after"]) == ("pass@k", "1", "rl")
    }
    assert {task for _, task in at_1} == {"average", "countdown", "harder"}
    for cell in ("ce-seed0", "tail-seed0"):
        assert at_1[cell, "average"] == pytest.approx((at_1[cell, "countdown"] + at_1[cell, "harder"]) / 2, abs=1e-5)
    assert {row["task"] for row in rows if row["metric"] == "entropy"} == {"average"}  # text is the same, whatever the set


def test_the_report_the_terminal_and_json_show_each_set(shelf: Shelf) -> None:
    shown = shelf.call("report", "mine").output
    assert "Mean over 2 evaluation sets, by number of problems: countdown (40), harder (10)." in shown
    assert re.search(r"\nharder +tail +\.\d{3} +\.\d{3} +\+\.\d{3} \[", shown)
    told = shelf.json("report", "mine", "--filter", "tail")
    assert [(row["set"], row["setting"], row["problems"]) for row in told["sets"]["rows"]] == [
        ("countdown", "tail", 40),
        ("harder", "tail", 10),
    ]
    assert {(one["set"], one["setting"]) for one in told["sets"]["levels"]} == {("countdown", "tail"), ("harder", "tail")}
    assert all("set" not in one for one in told["levels"])
    folder = shelf.home.sweep("mine")
    page, text = ((folder / name).read_text() for name in ("report.html", "report.md"))
    for title in ("On each evaluation set", "Where RL ends, on each evaluation set, compared"):
        assert title in page
        assert f"## {title}" in text
    assert "the mean over 2 sets (countdown 40, harder 10 problems)" in page


def test_wandb_has_a_table_of_sets_and_their_summary_values(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = found_in(loaded(shelf))
    told = summary(found, NOWHERE)
    log_comparison("mine", TrackingConfig(), tmp_path, found.evaluations, told, "mine-1")
    (run,) = read_runs(tmp_path)
    (file,) = tmp_path.glob("wandb/**/sets_0_*.table.json")
    table = json.loads(file.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    (row,) = (one for one in rows if (one["set"], one["setting"], one["metric"]) == ("harder", "tail", "pass@1"))
    (expected,) = (one for one in told["sets"]["rows"] if (one["set"], one["setting"]) == ("harder", "tail"))
    assert (row["problems"], row["gain"]) == (10, pytest.approx(expected["pass@1"]["gain"]["value"]))
    assert run.summary["level/tail/harder/pass@1"] == pytest.approx(expected["pass@1"]["after"]["value"])
    assert run.summary["level/tail/pass@1"] == pytest.approx(told["rows"][1]["pass@1"]["after"]["value"])


def test_data_frames_have_the_mean_and_each_set(shelf: Shelf) -> None:
    sweep = load_sweep_results("mine", shelf.home.path)
    levels = sweep.levels.query("metric == 'pass@k' and k == 1")
    assert levels["task"].tolist() == ["average", "countdown", "harder"]
    assert set(sweep.settings.query("metric == 'greedy'")["task"]) == {"average", "countdown", "harder"}
    values = sweep.problems.query("cell == 'tail-seed0' and after == 'rl' and metric == 'pass@k' and k == 1")
    means = values.groupby("task")["value"].mean()
    assert means.mean() == pytest.approx(sweep.settings.query("setting == 'tail' and task == 'average' and k == 1")["after"].iloc[0])
    assert set(sweep.samples["task"]) == {"countdown", "harder"}


def test_a_plan_counts_problems_as_their_mean_does() -> None:
    cells = list(load_sweep("paper_4b").cells())
    expected = power_of(cells, NOWHERE)
    assert expected is not None
    assert (expected.problems, sum(expected.sets)) == (364, 1546)


def test_spreads_of_a_mean_over_equal_sets_are_those_of_their_problems_together() -> None:
    """So that a plan from a sweep of several sets and one from a sweep of a single set say the same."""
    plans = build_graph(load_sweep("quickstart", ["axes.prior=[ce,tail]", "axes.seed=[0,1,2]", "evaluate.samples=8"]).cells()).cells
    together, apart = [], []
    for number, plan in enumerate(plans):
        for after in ("pretrain", "rl"):
            one = evaluation(plan, after, 0.8, seed=number, problems=80)
            halves = {
                name: replace(
                    one,
                    problems=one.problems[part],
                    metrics={metric: {k: values[part] for k, values in by_k.items()} for metric, by_k in one.metrics.items()},
                )
                for name, part in (("first", slice(0, 40)), ("second", slice(40, 80)))
            }
            together.append(one)
            apart.append(_joined(halves))
    spreads = []
    for evaluations in (together, apart):
        found = found_in(evaluations)
        spread = measured_spreads(found.differences["level"], found.settings)
        assert spread is not None
        spreads.append(spread)
    for name in ("problems", "both", "sampling", "runs"):
        assert getattr(spreads[1], name) == pytest.approx(getattr(spreads[0], name), rel=0.1, abs=0.002), name
