"""How a group of responses is rewarded, and its advantages.

The trainer knows this protocol and nothing else. A kind is one module of this package, found by its name, with a function
`build(config, seed)`; it overrides what it needs of `Advantage`, which by itself is GRPO's.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from stages.rl.dynamic_sampling import Group


class Advantage:
    """GRPO. Numbers may depend on the arguments and the run's seed only, so that a resumed run is the same run."""

    def rewards(self, group: Group, step: int) -> Float[Tensor, " samples"]:
        """The reward of each response; `step` counts the optimizer steps made so far."""
        return group.rewards

    def advantages(self, rewards: Float[Tensor, " samples"]) -> Float[Tensor, " samples"] | None:
        """Advantages of the responses to one problem, given their rewards (bonus included).

        None: reward minus the group's mean, divided as `rl.scale_rewards` says, which TRL computes.
        """
        return None

    def has_signal(self, group: Group, step: int) -> bool:
        """Whether any advantage in the group differs from 0, bonuses aside. Dynamic sampling replaces groups without signal."""
        rewards = self.rewards(group, step)
        advantages = self.advantages(rewards)
        return bool(rewards.max() > rewards.min()) if advantages is None else bool(advantages.any())
