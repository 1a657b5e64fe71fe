"""RL's problems: those to validate on are never trained on, in whatever wording."""

import pytest

from pipeline.experiment.compose import load_recipe
from stages.rl.problems import training_and_validation
from stages.tasks import build_task


@pytest.mark.parametrize("rewordings", ["false", "true"])
def test_validation_shares_no_problem_with_training(rewordings: str) -> None:
    overrides = ["rl.problems=40", f"rl.rewordings={rewordings}", "rl.validation={every: 10, problems: 9, samples: 4, best_k: 1}"]
    (cell,) = load_recipe("quickstart", overrides).cells()
    assert cell.recipe.rl is not None
    training, validation = training_and_validation(build_task(cell.recipe.task), cell.recipe.rl, seed=0)
    assert len({problem.id for problem in training}) == 40
    assert len({problem.id for problem in validation}) == len(validation) == 9
    assert not {problem.id for problem in training} & {problem.id for problem in validation}
    assert len({problem.prompt for problem in training}) == len(training)
    assert len(training) == 40 if rewordings == "false" else len(training) > 40 * 4  # 6 orders, fewer where numbers are equal


def test_a_task_without_other_wordings_is_trained_on_as_it_is() -> None:
    (cell,) = load_recipe("quickstart", ["task=arithmetic", "rl.problems=40"]).cells()
    assert cell.recipe.rl is not None
    assert cell.recipe.rl.rewordings
    training, validation = training_and_validation(build_task(cell.recipe.task), cell.recipe.rl, seed=0)
    assert (len(training), len(validation)) == (40, 48)
