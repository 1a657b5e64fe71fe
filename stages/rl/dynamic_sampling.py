"""Dynamic sampling: train on groups whose rewards differ (DAPO, arXiv 2503.14476, section 3.2).

A group whose responses are all right or all wrong has no advantage to learn from. Such groups are dropped whole and other problems
are sampled in their place, round by round, until the batch is full or the rounds are used up. Places that stay empty are filled with
dropped groups whose tokens do not count, so that they do not dilute the mean over tokens.
"""

from __future__ import annotations

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
    """Of the sampled tokens, by what sampled them; None where that does not tell."""
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
    rounds: int,
    largest_of_ranks: Callable[[int], int],
) -> Draw:
    """Sample `problems`, then `more_problems(round, groups)` in further rounds, until there are as many mixed groups as problems.

    With one round every group is kept, mixed or not: plain GRPO.

    Every rank samples as often and as much as the one that lacks most (`largest_of_ranks`): sampling is a collective operation.
    """
    first = sample(problems)
    wanted = len(first)
    if rounds == 1:
        return Draw(first, [], False, 1, wanted, first)
    kept, dropped = [group for group in first if group.mixed], [group for group in first if not group.mixed]
    made, generated = 1, wanted
    while made < rounds and (missing := largest_of_ranks(max(0, wanted - len(kept)))):
        groups = sample(more_problems(made, missing))
        kept += [group for group in groups if group.mixed]
        dropped += [group for group in groups if not group.mixed]
        generated += len(groups)
        made += 1
    kept = kept[:wanted]
    nothing_kept = largest_of_ranks(len(kept)) == 0
    return Draw(kept, dropped[: wanted - len(kept)], nothing_kept, made, generated, first)
