"""Evaluation during RL: what is measured, which policy is the best, and which kept weights survive."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pipeline.config.evaluation import Verification
from pipeline.config.rl import RLConfig, ValidationConfig
from pipeline.config.tasks import CountdownTask
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from stages.rl.validation import Response, best_folder, best_step, forget_others, keep, validate
from stages.tasks import Problem, build_task
from stages.tasks.verifier import Verifier

PROBLEMS = [Problem(f"{n},1={n + 1}", f"{n},1={n + 1}:", {"numbers": [n, 1], "target": n + 1}) for n in range(2, 6)]

WRONG = Response("1", 5, False, -0.5)


def right(problem: Problem) -> Response:
    return Response(f"{problem.data['numbers'][0]}+1", 3, True, 2.0)


def rl(*overrides: str) -> RLConfig:
    (cell,) = load_recipe("quickstart", overrides).cells()
    assert cell.recipe.rl is not None
    return cell.recipe.rl


def test_every_problem_is_measured_once_however_many_ranks_share_them() -> None:
    """Problem i gets i right responses of 4."""
    asked: list[str] = []

    def respond(problems: list[Problem]) -> list[Response]:
        asked.extend(problem.id for problem in problems)
        return [right(problem) if number % 4 < PROBLEMS.index(problem) else WRONG for number, problem in enumerate(problems)]

    with Verifier(partial(build_task, CountdownTask(numbers=(2,))), Verification()) as verifier:
        settings = ValidationConfig(every=1, problems=4, samples=4, best_k=3)
        whole = validate(PROBLEMS, settings, verifier, respond, slice(0, None, 1), list)
        assert asked == [problem.id for problem in PROBLEMS for _ in range(4)]
        gathered: list[object] = []

        def gather(own: list[object]) -> list[object]:
            gathered.extend(own)
            return gathered

        for rank in (0, 1):  # the second rank's call sees what both have gathered
            shared = validate(PROBLEMS, settings, verifier, respond, slice(rank, None, 2), gather)
    assert whole == shared
    assert whole.solved == {problem.id: number for number, problem in enumerate(PROBLEMS)}
    assert whole.row["validation/pass@1"] == pytest.approx((0 + 1 + 2 + 3) / 16)
    assert whole.row["validation/pass@3"] == pytest.approx((0 + 3 / 4 + 1 + 1) / 4)
    assert whole.row["validation/pass@4"] == pytest.approx(3 / 4)
    assert whole.row["validation/ended"] == pytest.approx(6 / 16)
    assert whole.row["validation/kl_response"] == pytest.approx((6 * 2 - 10 * 0.5) / 16)
    assert whole.row["validation/kl_token"] == pytest.approx((6 * 2 - 10 * 0.5) / (6 * 3 + 10 * 5))
    assert whole.row["validation/length"] == pytest.approx((6 * 3 + 10 * 5) / 16)


def test_the_best_policy_has_the_highest_score_and_of_equals_the_earliest() -> None:
    scores = {0: 0.1, 10: 0.3, 20: 0.3, 30: 0.2}
    rows = [{"step": float(step), "validation/pass@1": score} for step, score in scores.items()]
    assert best_step([*rows, {"step": 30.0, "loss": 1.0}], best_k=1) == 10
    assert best_step([{"step": 1.0, "loss": 1.0}], best_k=1) is None


def test_a_kept_policy_is_whole_and_others_can_be_forgotten(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "best.part").mkdir()
    (tmp_path / "best.part" / "half").touch()  # a kill came while it was written
    for step in (5, 10):
        keep(tmp_path, step, lambda folder: (folder / "weights").touch(), main=True)
    keep(tmp_path, 15, lambda _: None, main=False)
    rows = [{"step": 5.0, "validation/pass@1": 0.1}, {"step": 10.0, "validation/pass@1": 0.2}]
    forget_others(tmp_path, rows, best_k=1)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", "best-5", "best-10"}  # 5 may be needed, should 10 be damaged
    (tmp_path / "checkpoint-5").rename(tmp_path / "checkpoint-10")
    forget_others(tmp_path, rows, best_k=1)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "best-10"}
    assert [path.name for path in best_folder(tmp_path, 10).iterdir()] == ["weights"]


def test_the_limit_on_responses_follows_the_steps() -> None:
    settings = rl("rl.lengthen=[{after_steps: 10, max_response_tokens: 32}, {after_steps: 30, max_response_tokens: 48}]")
    assert [settings.response_tokens_at(step) for step in (0, 9, 10, 29, 30, 49)] == [16, 16, 32, 32, 48, 48]
    assert settings.longest_response == 48
    assert settings.identity()["lengthen"][0] == {"after_steps": 10, "max_response_tokens": 32}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl.validation=null", "rl.export=best"], "no validation finds the best; set validation.every"),
        (["rl.validation.every=5", "rl.validation.best_k=32"], r"best_k is 32, but only 16 samples"),
        (["rl.validation.every=5", "rl.updates_per_rollout=2"], r"validation.every is 5; it must be a multiple of updates_per_rollout"),
        (["rl.steps=80", "rl.optimizer.decay_steps=90"], r"warmup_steps \(0\) \+ decay_steps \(90\) exceed steps \(80\)"),
        (["rl.steps=80", "rl.lengthen=[{after_steps: 80, max_response_tokens: 32}]"], r"must increase, stay below steps \(80\)"),
        (["rl.lengthen=[{after_steps: 9, max_response_tokens: 300}]"], r"rl.max_response_tokens \(300\).*exceed model.max_positions"),
        (
            ["rl.validation={every: 5, problems: 1}", "rl.launch.processes=2", "rl.launch.micro_batch=64"],
            r"validation.problems is 1; each of the 2 processes needs at least one",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(PriorlabError, match=message):
        rl(*overrides)
