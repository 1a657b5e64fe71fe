"""Dynamic sampling: train on groups with a learning signal (DAPO, arXiv 2503.14476, section 3.2).

A group whose responses are all right or all wrong has no advantage to learn from. Such groups are dropped whole and other problems
are sampled in their place until the batch is full; how many follows from the share of groups that have taught so far in the step. The
cap is on rollouts, the same for a policy that needs many as for any other. Places still empty at the cap are filled with dropped
groups whose tokens do not count, so that they do not dilute the mean over tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The responses to one problem; each list has one entry a response."""

    problem: int
    """Its number among the training problems."""
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    log_probs: list[list[float] | None]
    """Log-probs of the sampled tokens, from whatever sampled them; None where it reports none."""
    rewards: Float[Tensor, " samples"]

    @property
    def mixed(self) -> bool:
        """Whether the rewards differ."""
        return bool(self.rewards.max() > self.rewards.min())

    @property
    def correct(self) -> Bool[Tensor, " samples"]:
        """Which responses the verifier accepts."""
        return self.rewards > 0


@dataclass(frozen=True)
class Draw:
    """What a batch is made of: `kept` groups to learn from, then `fillers`, whose tokens count only where nothing was kept at all."""

    kept: list[Group]
    fillers: list[Group]
    fillers_count: bool
    rounds: int
    generated: int
    first_round: list[Group]

    @property
    def groups(self) -> list[Group]:
        return self.kept + self.fillers

    @property
    def counted(self) -> list[bool]:
        """Which of `groups` the loss counts."""
        return [True] * len(self.kept) + [self.fillers_count] * len(self.fillers)


def draw_groups(
    problems: list[int],
    sample: Callable[[list[int]], list[Group]],
    more_problems: Callable[[int, int], list[int]],
    *,
    has_signal: Callable[[Group], bool],
    budget: float,
    sum_over_ranks: Callable[[list[float]], list[float]],
    largest_of_ranks: Callable[[int], int],
) -> Draw:
    """Sample `problems`, then `more_problems(round, groups)` in further rounds, until as many groups teach as there are problems.

    At most `budget` times as many groups are sampled as there are problems. With a budget of 1 every group is kept: plain GRPO.

    Every rank samples as often and as much as the one that lacks most (`largest_of_ranks`): sampling is a collective operation.
    """
    first = sample(problems)
    wanted = len(first)
    if budget == 1:
        return Draw(first, [], False, 1, wanted, first)
    kept: list[Group] = []
    dropped: list[Group] = []
    rounds = generated = 0
    groups = first
    while True:
        for group in groups:
            (kept if has_signal(group) else dropped).append(group)
        generated += len(groups)
        rounds += 1
        missing = largest_of_ranks(max(0, wanted - len(kept)))
        left = round(budget * wanted) - generated
        if not missing or left <= 0:
            break
        taught, sampled = sum_over_ranks([len(kept), generated])
        # At most as much again as so far: the share is a guess, and a poor one from few groups.
        likely = math.ceil(missing * sampled / taught) if taught else generated
        groups = sample(more_problems(rounds, min(left, generated, likely)))
    kept = kept[:wanted]
    nothing_kept = largest_of_ranks(len(kept)) == 0
    return Draw(kept, dropped[: wanted - len(kept)], nothing_kept, rounds, generated, first)
