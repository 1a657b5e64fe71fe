"""Coverage of the comparison's intervals, and how often its verdict makes a false claim, over simulated sweeps.

    .venv/bin/python scripts/benchmarks/intervals.py --json intervals.json
    .venv/bin/python scripts/benchmarks/intervals.py --seeds 5 --run-spread 0.1 --effect 0.03

Each sweep has `--priors` priors, seeds, problems and samples. A problem's difficulty comes from a Beta distribution; a training run
shifts all its problems (`--run-spread`, and `--shared-spread` for what runs of one seed have in common) and each for itself
(`--problem-spread`; standard deviations in log-odds). RL does nothing and no prior differs, unless `--effect` moves the pass@1 that
the second prior ends with. The counts of correct samples go through the project's own functions, to the verdict.

`single` is the coverage of one interval (pass@1 of a setting before RL), `joint` that of the whole family of levels compared. A
claim is false where nothing differs; its share counts sweeps whose verdict makes it. At one seed the truth is that of the training
runs, since no more is claimed. A share's own error is about 1 point at 400 sweeps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import beta

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.findings import Findings, findings
from pipeline.compare.intervals import Floats, Interval, mean_interval
from pipeline.compare.measured import Quantity
from pipeline.compare.verdict import verdict
from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import CellPlan, build_graph
from stages.evaluate.metrics import doubling_ks, pass_at_k

_PRIORS = ("ce", "precision", "diversity", "tail", "head")
_CLAIMS = {
    "levels": r"ends (higher|lower) than",
    "gains": r"gained (more|less) than",
    "adjusted": r"ends (higher|lower), given the same base, than",
    "predictors": r"after RL correlates with",
}
_SIZES = ("half-width", "detectable")
_PASS_1 = Quantity("pass@k", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=400, help="simulated per row")
    parser.add_argument("--priors", type=int, default=5, choices=range(2, len(_PRIORS) + 1))
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3, 5])
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--difficulty", type=float, nargs=2, default=[0.6, 1.2], metavar=("A", "B"), help="of the Beta distribution")
    parser.add_argument("--run-spread", type=float, nargs="*", default=[0.0, 0.1, 0.4])
    parser.add_argument("--shared-spread", type=float, default=0.05)
    parser.add_argument("--problem-spread", type=float, default=0.7)
    parser.add_argument("--unequal", type=float, default=1.0, help="the last prior's run-spread is this many times the others'")
    parser.add_argument("--carried", action="store_true", help="RL leaves every run exactly as it was")
    parser.add_argument("--head-start", type=float, default=0.0, help="of the second prior, in log-odds; with --carried")
    parser.add_argument("--effect", type=float, default=0.0, help="what the second prior's pass@1 after RL is higher by")
    parser.add_argument("--unpooled", action="store_true", help="judge the luck of seeds by each setting's own seeds")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    rows: list[dict[str, float]] = []
    for spread, seeds in itertools.product(arguments.run_spread, arguments.seeds):
        row = {"run_spread": spread, "seeds": seeds} | _simulated(arguments, spread, seeds)
        if not rows:
            print("  ".join(f"{name:>{max(7, len(name))}}" for name in row))
        rows.append(row)
        print("  ".join(f"{value:>{max(7, len(name))}.3g}" for name, value in row.items()), flush=True)
    if arguments.json:
        told = vars(arguments) | {"json": str(arguments.json)}
        arguments.json.write_text(json.dumps({"arguments": told, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _simulated(arguments: argparse.Namespace, spread: float, seeds: int) -> dict[str, float]:
    rng = np.random.default_rng([20251222, seeds, int(1000 * spread)])
    axes = [f"axes.prior=[{','.join(_PRIORS[: arguments.priors])}]", f"axes.seed={list(range(seeds))}"]
    plans = build_graph(load_sweep("quickstart", [*axes, f"evaluate.samples={arguments.samples}"]).cells()).cells
    world = _World(arguments, spread, seeds)
    told: dict[str, list[float]] = {}
    for _ in range(arguments.sweeps):
        evaluations, truth = world.sweep(plans, rng)
        found = findings([plan.cell for plan in plans], evaluations, pooled=not arguments.unpooled)
        said = verdict(found.planned, found.settings, found.gains, found.differences, found.predictors, found.ks, [])
        levels = found.differences["level"]
        first = [one for one in levels if one.quantity == _PASS_1]
        differ = arguments.effect or arguments.head_start  # else the true difference is 0 in every quantity
        known = first if seeds == 1 or differ else levels
        row: dict[str, float] = {
            "single": float(np.mean([one.low <= truth[name][0] <= one.high for name, one in _before(found)])),
            "joint": all(_covers(one.interval, truth[one.setting][1] - truth[one.reference][1]) for one in known),
        }
        row |= {f"claim: {claim}": any(re.search(words, sentence) for sentence in said) for claim, words in _CLAIMS.items()}
        wrong = [one for (name, _), one in found.gains.items() if one.shown and one.value * (truth[name][1] - truth[name][0]) <= 0]
        row["claim: RL raised"] = bool(wrong)
        row["half-width"] = float(np.mean([(one.interval.high - one.interval.low) / 2 for one in first]))
        row["detectable"] = float(np.mean([one.interval.detectable for one in first]))
        row["power"] = first[0].interval.shown and first[0].interval.value > 0
        for name, value in row.items():
            told.setdefault(name, []).append(value)
    return {name: float(np.median(values) if name in _SIZES else np.mean(values)) for name, values in told.items()}


def _before(found: Findings) -> list[tuple[str, Interval]]:
    return [(setting.name, mean_interval(setting.base_values(_PASS_1))) for setting in found.settings]


def _covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


class _World:
    """The populations of problems and of training runs."""

    def __init__(self, arguments: argparse.Namespace, spread: float, seeds: int) -> None:
        self.arguments, self.spread, self.seeds = arguments, spread, seeds
        nodes, weights = np.polynomial.hermite_e.hermegauss(21)
        self._difficulties = logit(beta.ppf((np.arange(400) + 0.5) / 400, *arguments.difficulty))
        self._nodes, self._weights = nodes, weights / weights.sum()
        target = self.rate(0.0, runs=spread) + arguments.effect
        self.shift = brentq(lambda shift: self.rate(shift, runs=spread) - target, -5, 5) if arguments.effect else 0.0

    def rate(self, shift: float, *, runs: float | None) -> float:
        """Mean pass@1 over all problems: of one run at `shift`, or of runs that spread around it."""
        spreads = [self.arguments.problem_spread, *([] if runs is None else [runs, self.arguments.shared_spread])]
        total = float(np.sqrt(np.square(spreads).sum()))
        return float((expit(self._difficulties[:, None] + shift + total * self._nodes) @ self._weights).mean())

    def sweep(self, plans: Sequence[CellPlan], rng: np.random.Generator) -> tuple[list[Evaluation], dict[str, tuple[float, float]]]:
        """Its evaluations, and each setting's true pass@1 before and after RL: of its run, where that is the only one."""
        arguments = self.arguments
        difficulties = logit(np.clip(rng.beta(arguments.difficulty[0], arguments.difficulty[1], arguments.problems), 1e-9, 1 - 1e-9))
        shared = rng.normal(0, arguments.shared_spread, (2, self.seeds))
        evaluations, truth = [], {}
        for plan in plans:
            recipe = plan.cell.recipe
            number = _PRIORS.index(recipe.prior.name)
            spread = self.spread * (arguments.unequal if number == arguments.priors - 1 else 1.0)
            levels = []
            for after, role in enumerate(("pretrain", "rl")):
                if not after or not arguments.carried:
                    effect = (self.shift if after else 0.0) * (number == 1) + arguments.head_start * (number == 1)
                    shift = shared[after, recipe.seed] + rng.normal(0, spread) + effect
                    rates = expit(difficulties + shift + rng.normal(0, arguments.problem_spread, arguments.problems))
                evaluations.append(_evaluation(plan, role, rates, arguments.samples, rng))
                levels.append(self.rate(shift, runs=None) if self.seeds == 1 else self.rate(effect, runs=spread))
            truth[recipe.prior.name] = (levels[0], levels[1])
        return evaluations, truth


def _evaluation(plan: CellPlan, role: str, rates: Floats, n: int, rng: np.random.Generator) -> Evaluation:
    correct = rng.binomial(n, rates)
    return Evaluation(
        plan=plan,
        after=role,
        step=1,
        n=n,
        problems=[str(number) for number in range(len(rates))],
        metrics={
            "pass@k": {k: pass_at_k(correct, n, k) for k in doubling_ks(n)},
            "avg@n": {n: correct / n},
            "cons@n": {n: (correct > n / 2).astype(float)},
            "greedy": {1: (rates > 0.5).astype(float)},
            "greedy_length": {1: rng.normal(10, 1, len(rates))},
        },
        heldout={name: rng.normal(1, 0.1, 16) for name in ("cross_entropy", "entropy", "head_mass", "tail_mass")},
        step_seconds=np.array([]),
    )


if __name__ == "__main__":
    main()
