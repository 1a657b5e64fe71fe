"""The figures and the tables of docs/objective.md, computed with the objective itself.

.venv/bin/python scripts/figures/objective.py  # writes docs/objective-*.png, prints the tables
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import root_scalar
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.config.prior import Prior
from stages.objective.reference import positive_weight, shaped_loss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent.parent / "docs"
PEAKED = torch.tensor([0.7, 0.3], dtype=torch.float64)
ZIPF = (1 / torch.arange(1, 51, dtype=torch.float64)) / (1 / torch.arange(1, 51, dtype=torch.float64)).sum()
CONTEXTS = {"two tokens, .7 and .3": PEAKED, "Zipf over 50 tokens": ZIPF}
FORMS = ("product", "power")
COLOURS = {-0.5: "#762a83", -0.25: "#af8dc3", 0.0: "#555555", 0.5: "#7fbf7b", 1.0: "#1b7837"}


def stationary(truth: Float[Tensor, " vocab"], prior: Prior, steps: int = 300) -> Float[Tensor, " vocab"]:
    """The distribution at which the expected gradient of `shaped_loss` vanishes when the next token is drawn from `truth`.

    Found by natural-gradient steps (each logit's gradient over its probability) from the truth.
    """
    logits = truth.log().requires_grad_()
    targets = torch.arange(len(truth))
    for _ in range(steps):
        losses = shaped_loss(logits.expand(len(truth), -1), targets, prior, reduction="none")
        (gradient,) = torch.autograd.grad((truth * losses).sum(), logits)
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
            axis.plot(pi, positive_weight(pi.log(), Prior(beta=beta, form=form)), color=colour, label=f"β = {beta:g}")
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
            axis.plot(betas, [entropy(stationary(truth, Prior(beta=b, form=form))) for b in betas], style, color="#762a83", label=form)
        axis.axhline(entropy(truth), color="#555555", linewidth=0.8, linestyle=":", label="cross-entropy")
        axis.set(title=name, xlabel="β")
    lambdas = np.linspace(-0.2, 0.2, 11)
    for key, colour in (("lambda_head", "#1b7837"), ("lambda_tail", "#762a83")):
        values = [entropy(stationary(ZIPF, Prior(k=10).model_copy(update={key: value}))) for value in lambdas]
        axes[2].plot(lambdas, values, color=colour, label=key)
    axes[2].axhline(entropy(ZIPF), color="#555555", linewidth=0.8, linestyle=":")
    axes[2].set(title="Zipf over 50 tokens, head of k = 10", xlabel="λ")
    axes[0].set_ylabel("stationary entropy (nats)")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table() -> str:
    """The table of docs/objective.md: stationary entropies of the shipped betas."""
    lines = ["| context | cross-entropy | form | β = -0.25 | β = 0.5 |", "|---|---|---|---|---|"]
    for name, truth in CONTEXTS.items():
        for form in FORMS:
            low, high = (entropy(stationary(truth, Prior(beta=beta, form=form))) for beta in (-0.25, 0.5))
            lines.append(f"| {name} | {entropy(truth):.3f} | {form} | {low:.3f} | {high:.3f} |")
    return "\n".join(lines)


def matching_beta(beta: float, truth: Float[Tensor, " vocab"] = ZIPF) -> float:
    """The beta with which "power" settles at the entropy at which "product" settles with `beta`, to three digits."""
    wanted = entropy(stationary(truth, Prior(beta=beta)))
    found = root_scalar(lambda b: entropy(stationary(truth, Prior(beta=b, form="power"))) - wanted, x0=beta / 2, x1=beta, xtol=1e-5)
    return round(float(found.root), 3)


def equal_entropy_table() -> str:
    """For the shipped priors, the betas at which both forms settle at the same entropy in the Zipf context."""
    priors = {"precision": -0.25, "diversity": 0.5}
    lines = ["| prior | `product` | entropy | `power` | entropy |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(equal_entropy_row(*one, matching_beta(one[1])) for one in priors.items())])


def equal_entropy_row(name: str, product: float, power: float) -> str:
    """Of that table, for two betas that are to match."""
    ours, theirs = (entropy(stationary(ZIPF, prior)) for prior in (Prior(beta=product), Prior(beta=power, form="power")))
    return f"| `{name}` | {product:g} | {ours:.3f} | {power:g} | {theirs:.3f} |"


if __name__ == "__main__":
    draw_weights(DOCS / "objective-weights.png")
    draw_entropies(DOCS / "objective-entropy.png")
    print(table())
    print(equal_entropy_table())
