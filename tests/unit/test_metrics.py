"""pass@k and consensus against brute force and the reference implementation."""

import itertools

import numpy as np
import pytest
import scorio.eval
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluate.majority import majority_at_k
from stages.evaluate.metrics import (
    consensus,
    distinct_answers,
    distinct_share,
    doubling_ks,
    pass_at_k,
    pass_hat_k,
    potential_at_k,
    ratio_values,
    samples_to_correct,
)
from stages.evaluate.selection import selection_metrics


@given(st.data(), st.integers(1, 20))
def test_pass_at_k_and_pass_hat_k_equal_scorio(data: st.DataObject, n: int) -> None:
    k = data.draw(st.integers(1, n))
    outcomes = np.array(data.draw(st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=1, max_size=6)))
    correct = outcomes.sum(axis=1)
    assert pass_at_k(correct, n, k).mean() == pytest.approx(scorio.eval.pass_at_k(outcomes, k))
    assert pass_hat_k(correct, n, k).mean() == pytest.approx(scorio.eval.pass_hat_k(outcomes, k))


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n: int) -> None:
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        expected = sum(map(any, subsets)) / len(subsets)
        assert pass_at_k(np.array([correct]), n, k)[0] == pytest.approx(expected)


def test_one_correct_sample_of_eight_is_found_for_sure_by_eight_draws() -> None:
    assert pass_at_k(np.array([1]), 8, 8)[0] == 1.0  # drawing with replacement would give .656


@pytest.mark.parametrize(("correct", "n", "k"), [([1], 4, 5), ([1], 4, 0), ([5], 4, 1), ([-1], 4, 1)])
def test_impossible_counts_are_refused(correct: list[int], n: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"pass@|counts of correct"):
        pass_at_k(np.array(correct), n, k)


def test_ks_double_up_to_the_number_of_samples() -> None:
    assert doubling_ks(64) == [1, 2, 4, 8, 16, 32, 64]
    assert doubling_ks(12) == [1, 2, 4, 8, 12]
    assert doubling_ks(1) == [1]


def test_consensus_takes_the_most_frequent_answer() -> None:
    assert consensus(["a", "b", "b"], [False, True, True])
    assert not consensus(["a", "a", "b"], [False, False, True])


def test_unreadable_answers_do_not_vote() -> None:
    assert consensus([None, None, "a"], [False, False, True])
    assert not consensus([None, None], [False, False])


def test_of_tied_answers_the_first_sampled_wins() -> None:
    assert consensus(["a", "b"], [True, False])
    assert not consensus(["b", "a"], [False, True])


@given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "c", "d"]), st.booleans()), min_size=1, max_size=6), st.data())
def test_majority_is_the_mean_vote_over_all_subsets_in_all_orders(drawn: list[tuple[str | None, bool]], data: st.DataObject) -> None:
    """The order decides who wins a tie, and so breaks it at random."""
    drawn = [(answer, good and answer is not None) for answer, good in drawn]
    k = data.draw(st.integers(1, len(drawn)))
    expected = np.mean([consensus(*zip(*order, strict=True)) for order in itertools.permutations(drawn, k)])
    answers, correct = zip(*drawn, strict=True)
    assert majority_at_k(answers, correct, k) == pytest.approx(expected, abs=1e-12)


def test_majority_of_many_samples_is_what_random_subsets_vote() -> None:
    rng = np.random.default_rng(0)
    answers = [str(answer) for answer in np.minimum(rng.geometric(0.15, 96), 20)]
    correct = [answer in ("2", "3", "7") for answer in answers]
    assert majority_at_k(answers, correct, 1) == pytest.approx(np.mean(correct))
    assert majority_at_k(answers, correct, 96) == float(consensus(answers, correct))  # no tie here
    for k in (2, 8, 32):
        subsets = [rng.permutation(96)[:k] for _ in range(4000)]
        votes = [consensus([answers[i] for i in subset], [correct[i] for i in subset]) for subset in subsets]
        assert majority_at_k(answers, correct, k) == pytest.approx(np.mean(votes), abs=4 * np.std(votes) / np.sqrt(4000))


@pytest.mark.parametrize("k", [0, 3])
def test_a_majority_needs_as_many_samples(k: int) -> None:
    with pytest.raises(ValueError, match=f"maj@{k} needs at least {k} samples per problem and k >= 1; there are 2"):
        majority_at_k(["a", "b"], [True, False], k)


def test_the_effective_number_of_answers() -> None:
    assert distinct_answers(["a", "a", "a"]) == pytest.approx(1)
    assert distinct_answers(["a", "b", None, None]) == pytest.approx(2 * 2**0.5)  # shares 1/4, 1/4, 1/2
    assert distinct_answers(list("abcde")) == pytest.approx(5)


def test_potential_weighs_what_k_samples_find_by_how_often_one_fails() -> None:
    correct, n, k = np.array([0, 1, 4, 8]), 8, 4
    one, several = pass_at_k(correct, n, 1), pass_at_k(correct, n, k)
    expected = sum(b * (1 - a) for a, b in zip(one, several, strict=True)) / sum(1 - a for a in one)
    assert potential_at_k(correct, n, k).mean() == pytest.approx(expected)
    assert potential_at_k(np.array([8, 8]), 8, 4).tolist() == [1, 1]  # nothing is left to be found


def test_the_share_of_distinct_correct_answers_is_a_mean_over_problems_with_any() -> None:
    assert distinct_share([["a", "a", "b", "c"], [], ["a"]]).mean() == pytest.approx((3 / 4 + 1) / 2)
    assert distinct_share([[], []]).tolist() == [0, 0]


def test_values_of_a_ratio_spread_as_the_ratio_does() -> None:
    """The bootstrap of their mean has the spread of the bootstrapped ratio itself."""
    rng = np.random.default_rng(0)
    weights = rng.random(200)
    values = rng.random(200) * weights
    draws = rng.integers(0, 200, (4000, 200))
    ratios = (weights[draws] * values[draws]).sum(axis=1) / weights[draws].sum(axis=1)
    found = ratio_values(values, weights, if_no_weight=0.0)
    assert found.mean() == pytest.approx((weights @ values) / weights.sum())
    assert found[draws].mean(axis=1).std() == pytest.approx(ratios.std(), rel=0.03)


@pytest.mark.parametrize(("correct", "n"), [(0, 4), (1, 4), (2, 5), (5, 5)])
def test_samples_to_correct_is_the_mean_place_of_the_first_over_all_orders(correct: int, n: int) -> None:
    orders = set(itertools.permutations([True] * correct + [False] * (n - correct)))
    expected = np.mean([order.index(True) + 1 if any(order) else n + 1 for order in orders])
    assert samples_to_correct(np.array([correct]), n)[0] == pytest.approx(expected)


def test_selection_is_measured_by_the_place_of_the_first_correct_pick() -> None:
    correct = np.array([[False, True, False, False], [False] * 4])
    found = selection_metrics(correct, [[3, 1, 0, 2], [0, 1, 2, 3]])
    assert found["selected_pass@k"] == {"1": [0, 0], "2": [1, 0], "4": [1, 0]}
    assert found["selected_gain@k"] == {"1": [-0.25, 0], "2": [0.5, 0], "4": [0, 0]}
    assert found["samples_to_correct"] == {"4": [2.5, 5]}
    assert found["selected_samples_to_correct"] == {"4": [2, 5]}
