"""Parity, answered directly or worked out: the task of "RL after next-token prediction" (arXiv 2510.11495, section 3).

A prompt shows d bits. A share `p_cot` of the text continues with the parities of its first 1, 2, ..., d bits, the rest with only the
last. No small model learns the short answer, and while p_cot < 1/3 stopping after the first bit is the likelier continuation:
greedy decoding guesses, although sampling sometimes works the answer out.
"""

from __future__ import annotations

import random
from itertools import accumulate
from operator import xor

from pipeline.config.tasks import ParityTask
from stages.tasks.generated import GeneratedTask
from stages.tasks.protocol import Problem, Verdict


class Parity(GeneratedTask):
    kind = "parity"
    knobs = "task.bits"
    alphabet = "01:"

    def __init__(self, config: ParityTask) -> None:
        super().__init__(config.name)
        self.config = config

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Correct at the end (after any bits), as the exact chain or the answer alone, and as the chain alone ("worked").

        More bits than the prompt has are not an answer, so a response truncated there cannot be right by luck.
        """
        chain: str = problem.data["chain"]
        readable = 1 <= len(response) <= len(chain) and set(response) <= {"0", "1"}
        verdicts = {
            "end_to_end": readable and response[-1] == chain[-1],
            "chain": response in (chain, chain[-1]),
            "worked": response == chain,
        }
        rewarded = verdicts["chain" if self.config.reward == "chain" else "end_to_end"]
        return Verdict(correct=rewarded, answer=response[-1] if readable else None, further=verdicts)

    def draw(self, rng: random.Random) -> tuple[Problem, str]:
        """Uniform bits, and the long chain with probability `p_cot`, which affects no bit: every `p_cot` has the same problems."""
        bits = f"{rng.getrandbits(self.config.bits):0{self.config.bits}b}"
        chain = _running_parity(bits)
        response = chain if rng.random() < self.config.p_cot else chain[-1]
        return Problem(id=bits, prompt=f"{bits}:", data={"chain": chain}), response


def _running_parity(bits: str) -> str:
    """Parity of each prefix: 0 for an even number of ones, else 1. As signs (1 is -1), these are the running products."""
    return "".join(map(str, accumulate(map(int, bits), xor)))
