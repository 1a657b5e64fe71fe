"""What each importance correction does to the gradient when the engine's log-probs are noisy: the table of docs/rl.md.

    .venv/bin/python scripts/figures/importance.py  # prints it

A model of independent noise: log w of a token (trainer over engine) is normal with standard deviation s and mean -s^2 / 2, so that w
has mean 1, as a ratio of probabilities has over the engine's samples. `kept` is the mean of what a token's loss is multiplied by; with
1 the step is as long as without noise. `effective` is the effective sample size of these weights over responses, a response's weight
being the mean over its tokens: with .1, ten responses tell as much as one. Deterministic.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.config.algorithm import Correction
from stages.rl.importance import effective_share, weights

NOISE = (0.03, 0.05)
"""Standard deviations per token, in nats, as reported for bfloat16 (huggingface/trl#6789)."""
LENGTHS = (16, 8000)
RESPONSES = 1024
CAP = 3.0
MODES: tuple[Correction, ...] = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def simulated(mode: Correction, noise: float, length: int) -> tuple[float, float]:
    """(kept, effective)."""
    generator = torch.Generator().manual_seed(0)
    of_responses = []
    for _ in range(RESPONSES // 128):
        log_ratios = noise * torch.randn(128, length, generator=generator) - noise**2 / 2
        applied = weights(log_ratios, torch.ones(128, length, dtype=torch.bool), mode, CAP)
        of_responses.append(applied.double().mean(dim=1))
    weight = torch.cat(of_responses)
    return float(weight.mean()), effective_share(weight.log())


def table() -> str:
    """Rows of noise and length, columns of modes, cells `kept / effective`."""
    lines = ["| sd of log w a token | tokens | " + " | ".join(f"`{mode}`" for mode in MODES) + " |", "|---|---|" + "---|" * len(MODES)]
    for length in LENGTHS:
        for noise in NOISE:
            pairs = (simulated(mode, noise, length) for mode in MODES)
            cells = " | ".join(f"{kept:.2f} / {effective:.2f}" for kept, effective in pairs)
            lines.append(f"| {noise} | {length:,} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
