"""reasoning-gym: problems by name, split like all others, and a reward for a full score only. Skipped without the optional extra."""

import sys
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.evaluation import Verification
from pipeline.config.tasks import GymTask
from pipeline.errors import PriorlabError
from stages.tasks import Task, build_task
from stages.tasks.protocol import split_of
from stages.tasks.verifier import Verifier


def gym(dataset: str, **options: Any) -> Task:
    pytest.importorskip("reasoning_gym")
    return build_task(GymTask(dataset=dataset, options=options))


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.delitem(sys.modules, "stages.tasks.gym", raising=False)
    with pytest.raises(PriorlabError, match="pip install reasoning-gym=="):
        build_task(GymTask(dataset="chain_sum"))


@pytest.mark.parametrize("dataset", ["chain_sum", "basic_arithmetic", "spell_backward", "prime_factorization", "mini_sudoku"])
def test_the_entrys_answer_scores_and_other_text_does_not(dataset: str) -> None:
    task = gym(dataset)
    for problem in task.problems("rl", 3, seed=0):
        answer = problem.data["entry"]["answer"]
        assert task.verify(problem, answer).correct
        assert task.verify(problem, f" {answer}\n").correct
        for wrong in ("", "banana", f"{answer} 1", "[1,", "\x00", "((((", "9" * 1_000_000, "٣"):
            assert not task.verify(problem, wrong).correct


def test_a_partial_score_is_no_reward() -> None:
    task = gym("mini_sudoku")
    (problem,) = task.problems("rl", 1, seed=0)
    answer = problem.data["entry"]["answer"]
    nearly = answer[:-1] + ("1" if answer[-1] != "1" else "2")
    assert 0 < task._dataset.score_answer(nearly, problem.data["entry"]) < 1  # type: ignore[attr-defined]
    assert not task.verify(problem, nearly).correct


def test_options_reach_the_generator() -> None:
    short = gym("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    assert all(p.data["entry"]["metadata"]["num_terms"] == 2 for p in short.problems("rl", 20, seed=0))


def test_splits_never_share_a_problem_and_documents_are_prompts_with_answers() -> None:
    task = gym("chain_sum")
    for split in ("rl", "evaluate"):
        problems = task.problems(split, 30, seed=0)
        assert {split_of(problem.id) for problem in problems} == {split}
    documents = list(task.documents("corpus", 30, seed=0))
    assert len(documents) == 30
    for document in documents:
        assert document.prompt.endswith("\nAnswer: ")
        assert int(document.response) is not None
        assert set("".join(document)) <= set(task.alphabet)


def test_a_seed_repeats_and_another_differs() -> None:
    task = gym("chain_sum")
    assert task.problems("rl", 10, seed=0) == task.problems("rl", 10, seed=0)
    assert task.problems("rl", 10, seed=0) != task.problems("rl", 10, seed=1)


def test_a_data_set_that_pays_for_nonsense_is_refused() -> None:
    with pytest.raises(PriorlabError, match="game_of_life_halting gives a nonsense response full score"):
        gym("game_of_life_halting").problems("rl", 20, seed=0)


def test_asking_for_more_problems_than_exist_says_how_many_there_are() -> None:
    with pytest.raises(PriorlabError, match=r"only about \d+ distinct problems.*widen task\.options of chain_sum"):
        gym("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1, allow_negation=False).problems("evaluate", 500, seed=0)


def test_an_unknown_name_or_option_is_named() -> None:
    with pytest.raises(PriorlabError, match=r"no dataset 'chain_sun' \(task\.dataset\); did you mean 'chain_sum'\?"):
        gym("chain_sun")
    with pytest.raises(PriorlabError, match=r"task\.options do not fit reasoning-gym's chain_sum.*min_trms"):
        gym("chain_sum", min_trms=2)
    with pytest.raises(ValidationError, match="options has seed, which the stages set"):
        GymTask(dataset="chain_sum", options={"seed": 3})


def test_problems_are_judged_in_the_verifiers_workers() -> None:
    problems = gym("chain_sum").problems("rl", 20, seed=0)
    with Verifier(partial(build_task, GymTask(dataset="chain_sum")), Verification()) as verifier:
        verdicts = verifier.verify((p, p.data["entry"]["answer"] if i % 2 else "banana") for i, p in enumerate(problems))
        assert verifier.finish().failures == 0
    assert [verdict.correct for verdict in verdicts] == [bool(i % 2) for i in range(20)]


@pytest.mark.parametrize("dataset", ["countdown", "spiral_matrix", "polynomial_multiplication"])
def test_a_scorer_that_may_run_what_the_model_writes_is_refused_unless_allowed(dataset: str) -> None:
    with pytest.raises(PriorlabError, match=rf"{dataset} judges with (eval|parse_expr)\(\).*set task\.allow_code=true"):
        build_task(GymTask(dataset=dataset))
    assert len(build_task(GymTask(dataset=dataset, allow_code=True)).problems("rl", 2, 0)) == 2
