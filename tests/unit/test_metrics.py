"""pass@k and consensus against brute force and the reference implementation."""

import itertools

import numpy as np
import pytest
from evalplus.eval import estimate_pass_at_k
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluate.metrics import consensus, doubling_ks, pass_at_k


@given(st.data(), st.integers(1, 200))
def test_pass_at_k_equals_evalplus(data: st.DataObject, n: int) -> None:
    k = data.draw(st.integers(1, n))
    correct = np.array(data.draw(st.lists(st.integers(0, n), min_size=1, max_size=8)))
    np.testing.assert_allclose(pass_at_k(correct, n, k), estimate_pass_at_k(n, correct, k), rtol=1e-10, atol=1e-12)


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
