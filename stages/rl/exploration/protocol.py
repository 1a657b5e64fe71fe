"""What a way of exploring may do to GRPO: add to the rewards of a batch of groups, and add a term to the loss on its tokens.

The trainer knows this protocol and nothing else. A kind is one module of this package, found by its name, with a function
`build(config, context)`; it overrides what it needs of `Exploration`, which by itself does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from stages.rl.dynamic_sampling import Group


@dataclass(frozen=True)
class Context:
    """What a way of exploring may know of the stage. All of it is the same after a resume."""

    base: Path
    """HF folder of the checkpoint that RL starts from."""
    samples_per_prompt: int
    seed: int
    log: Callable[[str, float], None]
    """Logs a number of the step, averaged over ranks, under `exploration/NAME`; to be called by `bonus` only, and by all ranks."""


@dataclass(frozen=True)
class Tokens:
    """The sampled tokens of one forward pass, as the loss sees them."""

    log_probs: Float[Tensor, "responses tokens"]
    """Under the policy that is trained, with gradient; nats."""
    old_log_probs: Float[Tensor, "responses tokens"]
    """Under the policy that sampled them."""
    counted: Float[Tensor, "responses tokens"]
    """1 for a token that the loss counts; 0 for padding and for groups that dynamic sampling only fills up with."""
    correct: Bool[Tensor, " responses"]


class Exploration:
    """Does nothing. `step` counts the optimizer steps made so far."""

    def bonus(self, groups: Sequence[Group], step: int) -> list[Float[Tensor, " samples"]] | None:
        """What to add to each response's reward, group by group; None for nothing. Does not change what counts as correct."""
        return None

    def loss(self, tokens: Tokens) -> Float[Tensor, " responses"] | None:
        """A loss per response, whose mean over the batch's counted responses is added to the policy's loss; None for nothing."""
        return None
