"""Dynamic sampling: train on groups whose rewards differ (DAPO, arXiv 2503.14476, section 3.2).

A group whose responses are all right or all wrong has no advantage to learn from. Such groups are dropped whole and other problems
are sampled in their place, round by round, until the batch is full or the rounds are used up. Places that stay empty are filled with
dropped groups whose tokens do not count, so that they do not dilute the mean over tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """One problem's responses, in the parts that TRL's trainer generates; each list has one entry a response."""

    rows: list[Row]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    completions: list[Any]
    log_probs: list[list[float] | None]
    """Of the sampled tokens, by what sampled them; None where that does not tell."""
    rewards: Float[Tensor, "samples functions"]

    @property
    def mixed(self) -> bool:
        """Whether the rewards differ."""
        totals = self.rewards.nansum(dim=1)
        return bool(totals.max() > totals.min())

    @property
    def correct(self) -> Bool[Tensor, " samples"]:
        """Which responses the verifier accepts."""
        return self.rewards.nansum(dim=1) > 0


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


def draw_groups(
    rows: list[Row],
    sample: Callable[[list[Row]], list[Group]],
    more_rows: Callable[[int, int], list[Row]],
    *,
    rounds: int,
    largest_of_ranks: Callable[[int], int],
) -> Draw:
    """Sample `rows`, then `more_rows(round, groups)` in further rounds, until there are as many mixed groups as `rows` makes.

    With one round every group is kept, mixed or not: plain GRPO.

    Every rank samples as often and as much as the one that lacks most (`largest_of_ranks`): sampling is a collective operation.
    """
    first = sample(rows)
    wanted = len(first)
    if rounds == 1:
        return Draw(first, [], False, 1, wanted, first)
    kept, dropped = [group for group in first if group.mixed], [group for group in first if not group.mixed]
    made, generated = 1, wanted
    while made < rounds and (missing := largest_of_ranks(max(0, wanted - len(kept)))):
        groups = sample(more_rows(made, missing))
        kept += [group for group in groups if group.mixed]
        dropped += [group for group in groups if not group.mixed]
        generated += len(groups)
        made += 1
    kept = kept[:wanted]
    nothing_kept = largest_of_ranks(len(kept)) == 0
    return Draw(kept, dropped[: wanted - len(kept)], nothing_kept, made, generated, first)
