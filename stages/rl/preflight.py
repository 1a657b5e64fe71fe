"""What the base policy gives RL to learn from, measured before the first update."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from stages.rl.dynamic_sampling import Group


@dataclass(frozen=True)
class Preflight:
    """Shares over `problems` training problems, each with one group of responses."""

    problems: int
    mixed: float
    pass_at_1: float
    pass_at_group: float
    ended: float
    """Share of responses that end by themselves, instead of being cut at the length limit."""

    def advice(self, samples: int) -> str:
        """Why there is no learning signal, and what to change. For `mixed` == 0."""
        measured = (
            f"no learning signal: each of {self.problems} problems got {samples} responses of equal reward "
            f"(pass@1 {self.pass_at_1:.3f}, {self.ended:.0%} of the responses end by themselves)"
        )
        if self.pass_at_1 == 1:
            return f"{measured}; the problems are too easy for this policy: make the task harder"
        if self.pass_at_1 > 0:
            return f"{measured}; each is always or never solved: vary the task's difficulty, or raise rl.samples_per_prompt"
        if self.ended < 0.5:
            return f"{measured}; most responses are cut off: raise rl.max_response_tokens, or pre-train longer"
        return f"{measured}; the problems are too hard: make the task easier, pre-train longer, or raise rl.samples_per_prompt"


def preflight(groups: list[Group], end_tokens: Collection[int], sum_over_ranks: Callable[[list[float]], list[float]]) -> Preflight:
    """The shares over all ranks' groups; a group counts as solved if any of its responses is rewarded."""
    responses = [ids for group in groups for ids in group.completion_ids]
    counts: list[float] = [
        len(groups),
        len(responses),
        sum(group.mixed for group in groups),
        sum(group.rewards.sum().item() for group in groups),
        sum(bool((group.rewards > 0).any()) for group in groups),
        sum(ids[-1] in end_tokens for ids in responses),
    ]
    problems, sampled, mixed, rewarded, solved, ended = sum_over_ranks(counts)
    return Preflight(int(problems), mixed / problems, rewarded / sampled, solved / problems, ended / sampled)
