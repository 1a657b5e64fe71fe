"""Parity: what its text shows, which rules judge it, and that p_cot and reward change nothing else."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.tasks import ParityTask
from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import Graph, build_graph
from stages.tasks import Problem, Verdict, build_task
from stages.tasks.protocol import split_of

TASK = build_task(ParityTask(bits=4))
# 0110: no bit, one, two, two ones so far.
PROBLEM = Problem("0110", "0110:", {"chain": "0100"})


@pytest.mark.parametrize(
    ("response", "end_to_end", "chain", "worked"),
    [
        ("0100", True, True, True),
        ("0", True, True, False),
        ("1", False, False, False),
        ("10", True, False, False),  # the right end of a wrong chain
        ("0101", False, False, False),
        ("1110", True, False, False),
        ("01000", False, False, False),  # longer than the prompt, as a response that was cut may be
        ("", False, False, False),
        ("0100:", False, False, False),
        ("\u0661", False, False, False),
        ("0 ", False, False, False),
    ],
)
def test_each_rule_judges_as_the_paper_says(response: str, end_to_end: bool, chain: bool, worked: bool) -> None:
    verdict = TASK.verify(PROBLEM, response)
    assert verdict.further == {"end_to_end": end_to_end, "chain": chain, "worked": worked}
    assert verdict.correct == end_to_end
    assert build_task(ParityTask(bits=4, reward="chain")).verify(PROBLEM, response).correct == chain


@given(st.text(max_size=12) | st.text(alphabet="01", max_size=6))
def test_no_text_makes_the_verifier_raise_and_stricter_rules_accept_less(response: str) -> None:
    verdict = TASK.verify(PROBLEM, response)
    assert isinstance(verdict, Verdict)
    assert verdict.further["worked"] <= verdict.further["chain"] <= verdict.further["end_to_end"]
    assert (verdict.answer is None) <= (not verdict.correct)


@pytest.mark.parametrize("p_cot", [0.0, 0.2, 1.0])
def test_a_share_p_cot_of_the_text_works_the_answer_out(p_cot: float) -> None:
    task = build_task(ParityTask(bits=16, p_cot=p_cot))
    long = 0
    for document in task.documents("corpus", 3000, seed=0):
        bits, response = document.prompt.removesuffix(":"), document.response
        assert set("".join(document)) <= set(task.alphabet)
        products = itertools.accumulate((1 - 2 * int(bit) for bit in bits), lambda a, b: a * b)
        chain = "".join(str((1 - product) // 2) for product in products)
        assert response in (chain, chain[-1])
        long += response == chain
    assert long / 3000 == pytest.approx(p_cot, abs=0.03)


def test_every_p_cot_and_reward_has_the_same_problems_which_no_training_text_shows() -> None:
    settings = [ParityTask(p_cot=0.2), ParityTask(p_cot=0.5), ParityTask(p_cot=0.2, reward="chain")]
    found = [build_task(config).problems("evaluate", 200, seed=3) for config in settings]
    assert found[0] == found[1] == found[2]
    shown = {document.prompt.removesuffix(":") for document in TASK.documents("corpus", 500, seed=0)}
    assert {split_of(bits) for bits in shown} == {"corpus"}
    assert {split_of(problem.id) for problem in found[0]} == {"evaluate"}


def kinds(*overrides: str) -> Graph:
    return build_graph(load_recipe("parity", overrides).cells())


def test_the_reward_decides_no_text_so_both_rewards_share_the_pre_trained_model() -> None:
    ends, chain = (kinds(f"task.reward={reward}").cells[0] for reward in ("end-to-end", "chain"))
    for kind in ("corpus", "pretrain"):
        assert ends.chain[kind].fingerprint == chain.chain[kind].fingerprint
    assert ends.chain["rl"].fingerprint != chain.chain["rl"].fingerprint
    assert ends.chain["pretrain"].fingerprint != kinds("task.p_cot=0.3").cells[0].chain["pretrain"].fingerprint


def test_a_task_says_what_guessing_gives() -> None:
    (cell,) = load_recipe("parity").cells()
    assert cell.recipe.task.chance == 0.5
    (cell,) = load_recipe("quickstart").cells()
    assert cell.recipe.task.chance == 0
