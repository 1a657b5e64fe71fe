"""The figures and the tables of docs/objective.md, computed with the objective itself.

.venv/bin/python scripts/figures/objective.py  # writes docs/objective-*.png, prints the tables
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import TABLEAU_COLORS
from scipy.optimize import root_scalar
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from stages.objective.coverage import Coverage
from stages.objective.deformed import Deformed
from stages.objective.entropy import Entropy
from stages.objective.focal import Focal
from stages.objective.gem import Gem
from stages.objective.protocol import Objective, WeightedCrossEntropy
from stages.objective.reference import objective_loss
from stages.objective.shaped import Form, Shaped
from stages.objective.smoothing import Smoothing

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent.parent / "docs"
PEAKED = torch.tensor([0.7, 0.3], dtype=torch.float64)
ZIPF = (1 / torch.arange(1, 51, dtype=torch.float64)) / (1 / torch.arange(1, 51, dtype=torch.float64)).sum()
CONTEXTS = {"two tokens, .7 and .3": PEAKED, "Zipf over 50 tokens": ZIPF}
FORMS: tuple[Form, ...] = ("product", "power")
COLOURS = {-0.5: "#762a83", -0.25: "#af8dc3", 0.0: "#555555", 0.5: "#7fbf7b", 1.0: "#1b7837"}
FAMILY: dict[str, Objective] = {
    "precision": Shaped(beta=-0.25),
    "diversity": Shaped(beta=0.5),
    "focal": Focal(),
    "deformed": Deformed(),
    "gem": Gem(),
    "entropy": Entropy(),
    "smoothing": Smoothing(),
    "coverage": Coverage(attempts=4),
}
"""By name, the objectives of the figure and the table of the family, `coverage` for responses of one token. `dft` is not among them,
since it has no point of rest."""


def settled(truth: Float[Tensor, " vocab"], objective: Objective) -> Float[Tensor, " vocab"]:
    """Where the expected gradient vanishes when the next token is drawn from `truth`, by formula.

    GEM has its sharpened distribution there. Under every other objective without a head all tokens earn the same, `_earnings`, which
    falls as a token's probability grows (for beta < 0 up to some probability, beyond which nothing rests): two nested bisections.
    """
    if isinstance(objective, Gem):
        return (objective.tau * truth.log()).softmax(-1)

    grid = torch.linspace(-80, 0, 8001, dtype=truth.dtype)
    lowest_earnings = torch.stack([_earnings(at.expand_as(truth), truth, objective) for at in grid]).argmin(0)

    def probabilities(level: float) -> Float[Tensor, " vocab"]:
        low, high = torch.full_like(truth, -80.0), grid[lowest_earnings]
        for _ in range(100):
            middle = (low + high) / 2
            too_rare = _earnings(middle, truth, objective) > level
            low, high = torch.where(too_rare, middle, low), torch.where(too_rare, high, middle)
        return ((low + high) / 2).exp()

    lowest, highest = -100.0, 1e4
    for _ in range(100):
        level = (lowest + highest) / 2
        lowest, highest = (level, highest) if probabilities(level).sum() > 1 else (lowest, level)
    return probabilities(level)


def _earnings(log_probs: Float[Tensor, " vocab"], truth: Float[Tensor, " vocab"], objective: Objective) -> Float[Tensor, " vocab"]:
    """What each token is paid for its probability, on average over the true token."""
    if isinstance(objective, Entropy):
        return truth / log_probs.exp() - objective.alpha * log_probs
    if isinstance(objective, Smoothing):
        return ((1 - objective.epsilon) * truth + objective.epsilon / len(truth)) / log_probs.exp()
    assert isinstance(objective, WeightedCrossEntropy | Shaped | Coverage)
    return truth * objective.weight(log_probs) / log_probs.exp()


def stationary(truth: Float[Tensor, " vocab"], objective: Objective, steps: int = 300) -> Float[Tensor, " vocab"]:
    """The same by optimisation, for any objective: natural-gradient steps (a logit's gradient over its probability) from the truth."""
    logits = truth.log().requires_grad_()
    targets = torch.arange(len(truth)).unsqueeze(-1)  # each in a row of its own, so that it is a whole response
    for _ in range(steps):
        losses = objective_loss(logits.expand(len(truth), 1, -1), targets, objective, reduction="none")
        (gradient,) = torch.autograd.grad((truth * losses.squeeze(-1)).sum(), logits)
        with torch.no_grad():
            step = gradient / logits.softmax(-1)
            logits -= 0.2 * step
        if step.abs().max() < 1e-8:
            break
    return logits.detach().softmax(-1)


def entropy(probabilities: Float[Tensor, " vocab"]) -> float:
    """In nats."""
    return float(-(probabilities * probabilities.log()).sum())


def draw_weights(path: Path) -> None:
    """w of the cross-entropy gradient against pi_x, for both forms."""
    pi = torch.linspace(1e-3, 1 - 1e-3, 500, dtype=torch.float64)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, form in zip(axes, FORMS, strict=True):
        for beta, colour in COLOURS.items():
            axis.plot(pi, Shaped(beta=beta, form=form).weight(pi.log()), color=colour, label=f"β = {beta:g}")
        axis.set(title=f'form "{form}"', xlabel="probability of the true token, $\\pi_x$", ylim=(0, 3))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("weight of its gradient, $w$")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_entropies(path: Path) -> None:
    """Entropy of the stationary distribution against beta, for both forms, and against the lambdas."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    betas = np.linspace(-0.5, 1.0, 13)
    for axis, (name, truth) in zip(axes, CONTEXTS.items(), strict=False):
        for form, style in zip(FORMS, ("-", "--"), strict=True):
            axis.plot(betas, [entropy(stationary(truth, Shaped(beta=b, form=form))) for b in betas], style, color="#762a83", label=form)
        axis.axhline(entropy(truth), color="#555555", linewidth=0.8, linestyle=":", label="cross-entropy")
        axis.set(title=name, xlabel="β")
    lambdas = np.linspace(-0.2, 0.2, 11)
    for key, colour in (("lambda_head", "#1b7837"), ("lambda_tail", "#762a83")):
        values = [entropy(stationary(ZIPF, replace(Shaped(k=10), **{key: value}))) for value in lambdas]
        axes[2].plot(lambdas, values, color=colour, label=key)
    axes[2].axhline(entropy(ZIPF), color="#555555", linewidth=0.8, linestyle=":")
    axes[2].set(title="Zipf over 50 tokens, head of k = 10", xlabel="λ")
    axes[0].set_ylabel("stationary entropy (nats)")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_family(path: Path) -> None:
    """Probability at rest over the true probability, by rank in the Zipf context, for each objective."""
    figure, axis = plt.subplots(figsize=(9, 3.8), layout="constrained")
    ranks = np.arange(1, len(ZIPF) + 1)
    for (name, objective), colour in zip(FAMILY.items(), TABLEAU_COLORS, strict=False):
        axis.plot(ranks, settled(ZIPF, objective) / ZIPF, color=colour, label=f"{name}, {shown(objective)}")
    axis.axhline(1, color="#555555", linewidth=0.8, linestyle=":", label="cross-entropy")
    axis.set(xscale="log", yscale="log", ylim=(0.5, 2), xlabel="rank of the token", ylabel="probability at rest / true probability")
    axis.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axis.set_yticks([0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def shown(objective: Objective) -> str:
    """The knob that the figure's legend names."""
    knob = {"shaped": "beta", "focal": "gamma", "gem": "tau", "smoothing": "epsilon", "coverage": "attempts"}.get(
        objective.kind, "alpha"
    )
    return f"{knob} = {getattr(objective, knob):g}"


def family_table() -> str:
    """Entropies at rest of the family, in both contexts."""
    lines = ["| objective | " + " | ".join(CONTEXTS) + " |", "|---|---|---|"]
    rows: dict[str, Objective] = {"cross-entropy": Shaped()} | {f"`{name}`, {shown(one)}": one for name, one in FAMILY.items()}
    for name, objective in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{entropy(settled(truth, objective)):.3f}" for truth in CONTEXTS.values()) + " |")
    return "\n".join(lines)


def table() -> str:
    """The table of docs/objective.md: stationary entropies of the shipped betas."""
    lines = ["| context | cross-entropy | form | β = -0.25 | β = 0.5 |", "|---|---|---|---|---|"]
    for name, truth in CONTEXTS.items():
        for form in FORMS:
            low, high = (entropy(stationary(truth, Shaped(beta=beta, form=form))) for beta in (-0.25, 0.5))
            lines.append(f"| {name} | {entropy(truth):.3f} | {form} | {low:.3f} | {high:.3f} |")
    return "\n".join(lines)


def matching_beta(beta: float, truth: Float[Tensor, " vocab"] = ZIPF) -> float:
    """The beta with which "power" settles at the entropy at which "product" settles with `beta`, to three digits."""
    wanted = entropy(stationary(truth, Shaped(beta=beta)))
    found = root_scalar(lambda b: entropy(stationary(truth, Shaped(beta=b, form="power"))) - wanted, x0=beta / 2, x1=beta, xtol=1e-5)
    return round(float(found.root), 3)


def equal_entropy_table() -> str:
    """For the shipped priors, the betas at which both forms settle at the same entropy in the Zipf context."""
    priors = {"precision": -0.25, "diversity": 0.5}
    lines = ["| prior | `product` | entropy | `power` | entropy |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(equal_entropy_row(*one, matching_beta(one[1])) for one in priors.items())])


def equal_entropy_row(name: str, product: float, power: float) -> str:
    """Of that table, for two betas that are to match."""
    ours, theirs = (entropy(stationary(ZIPF, prior)) for prior in (Shaped(beta=product), Shaped(beta=power, form="power")))
    return f"| `{name}` | {product:g} | {ours:.3f} | {power:g} | {theirs:.3f} |"


if __name__ == "__main__":
    draw_weights(DOCS / "objective-weights.png")
    draw_entropies(DOCS / "objective-entropy.png")
    draw_family(DOCS / "objective-family.png")
    print(table())
    print(family_table())
    print(equal_entropy_table())
