"""Which figures a report shows, with their titles and captions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.compare.best import temperatures
from pipeline.compare.contrasts import Difference
from pipeline.compare.evaluations import stage_rows
from pipeline.compare.findings import Findings
from pipeline.compare.intervals import Interval
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.predictors import Points, Predictor
from pipeline.compare.settings import DECLARED
from pipeline.compare.starts import curves
from pipeline.compare.validations import BUDGETS, timed
from pipeline.report import plots
from pipeline.store.folders import Home

_MOST_LINES = 12
_MOST_ROWS = 40
_FEWEST_POINTS = 3
_RL_PANELS = (
    ("reward_raw", "reward"),
    ("entropy", "entropy as sampled (nats)"),
    ("completions/mean_length", "response tokens"),
    ("frac_reward_zero_std", "groups without signal"),
    ("clip_ratio/region_mean", "clipped tokens"),
    ("step_time", "seconds per step"),
)
_KL_PANELS = (
    ("validation/kl_response", "KL from base per response (nats)"),
    ("validation/kl_token", "KL from base per token (nats)"),
)
_PRETRAIN_PANELS = (("perplexity", "perplexity"), ("entropy", "entropy (nats)"), ("head_mass", "head mass"), ("tail_mass", "tail mass"))


@dataclass(frozen=True)
class Figure:
    title: str
    svg: str
    caption: str

    @property
    def file_name(self) -> str:
        """The title in letters, digits and dashes."""
        return "-".join(re.findall("[a-z0-9]+", self.title.lower())) + ".svg"


def figures(found: Findings, home: Home) -> list[Figure]:
    """All figures that the finished evaluations allow; of many settings, only the first."""
    compared, ks = found.settings, found.ks
    if not compared or not ks:
        return []
    drawn = compared[:_MOST_LINES]
    few = _few(_MOST_LINES, len(compared))
    shown = []
    if any(setting.finished for setting in compared):
        finished = [setting for setting in compared if setting.finished]
        for kind in ("declared", "level"):
            shown += _between(compared, found.differences[kind], "Who ends higher", "After RL: setting minus reference")
        forest = plots.gains(finished[:_MOST_ROWS], compared, found.gains, ks)
        first = _few(_MOST_ROWS, len(finished), "finished settings")
        shown.append(Figure("What RL gains", forest, f"After RL minus before. {_jointly(found.gains.values(), 'change')}{first}"))
        shown += _between(compared, found.differences["gain"], "Who gains more", "Gain minus the reference's gain")
    if known := curves(compared)[:_MOST_LINES]:
        of_k = [Quantity("pass@k", k) for k in dict.fromkeys([ks[0], ks[-1]])]
        said = (
            "Gains with joint intervals, as in the table; those at equal tokens are drawn side by side. Where lines meet, RL ends "
            "equally high from bases of the same pass@1 or entropy."
        )
        shown.append(Figure("What RL gains against tokens of pre-training", plots.start_curves(known, found.gains, of_k), said))
    shown.append(
        Figure(
            "pass@k before and after RL",
            plots.curves_at_k(drawn, "pass@k"),
            f"Dashed: before RL. Bands: 95% intervals. Past a crossing, the base model solves more problems with k samples.{few}",
        )
    )
    if any(map(temperatures, drawn)):
        caption = f"Dashed: before RL. Means over problems and seeds; where each line peaks is the setting's best temperature.{few}"
        shown.append(Figure("pass@k against the sampling temperature", plots.temperature_curves(drawn, ks), caption))
    if votes := plots.curves_at_k(drawn, "maj@k"):
        said = f"maj@k: the chance that the most frequent answer of k samples is correct. Dashed: before RL. Bands: 95% intervals.{few}"
        shown.append(Figure("maj@k before and after RL", votes, said))
    shown.append(
        Figure(
            "How reliably problems are solved",
            plots.cover_curves(drawn),
            "Cover@tau: the share of problems of whose samples at least the share tau is correct. Dashed: before RL. Bands: 95% "
            f"intervals. At the left end one correct sample is enough; the area below a curve is about pass@1.{few}",
        )
    )
    shown += _predictors(compared, found.points, found.predictors)
    if any(evaluation.milestone for evaluation in found.evaluations):
        caption = f"Each is evaluated like the last, on held-out text and on the problems.{few}"
        shown.append(Figure("Intermediate checkpoints", plots.milestone_curves(drawn, found.evaluations, ks), caption))
    return shown + _learning(found) + _training(drawn, home, few)


def _between(compared: Sequence[MeasuredSetting], between: Sequence[Difference], title: str, what: str) -> list[Figure]:
    found = []
    for axis in dict.fromkeys(one.axis for one in between):
        along = [one for one in between if one.axis == axis]
        every = list(dict.fromkeys((one.setting, one.reference) for one in along))
        pairs = every[:_MOST_ROWS]
        found.append(
            Figure(
                "Declared contrasts" if axis == DECLARED else f"{title}, along {axis}",
                plots.differences([one for one in along if (one.setting, one.reference) in pairs], compared),
                f"{what}, paired per problem and seed. {_jointly([one.interval for one in along], 'difference')}"
                f"{'' if any(one.seeds > 1 for one in along) else ' With one seed, they compare single training runs.'}"
                f"{_few(_MOST_ROWS, len(every), 'differences')}",
            )
        )
    return found


def _learning(found: Findings) -> list[Figure]:
    shown = []
    for axis in dict.fromkeys(one.axis for one in found.learning):
        for budget in BUDGETS:
            curves_ = [one for one in found.learning if (one.axis, one.budget) == (axis, budget)]
            names = list(dict.fromkeys((one.setting, one.reference) for one in curves_))
            drawn = [one for one in curves_ if (one.setting, one.reference) in names[:_MOST_LINES]]
            intervals = [difference.interval for one in curves_ for _, difference in one.points]
            said = "Setting minus reference on the validation problems, paired per problem and seed."
            shown.append(
                Figure(
                    f"Learning at equal {budget}, along {axis}",
                    plots.learning_curves(drawn, found.settings, label="RL steps" if budget == "steps" else budget),
                    f"{said} {_jointly(intervals, 'difference')}{_few(_MOST_LINES, len(names), 'differences')}",
                )
            )
    return shown


def _jointly(intervals: Iterable[Interval], what: str) -> str:
    told = sum(not math.isnan(one.low) for one in intervals)
    scope = f"All {told} intervals hold jointly at 95%" if told > 1 else "The interval has 95% confidence"
    return f"{scope}; one that crosses 0 shows no {what}."


def _predictors(compared: Sequence[MeasuredSetting], points: Points, foretold: Sequence[Predictor]) -> list[Figure]:
    if len(points.level) < _FEWEST_POINTS or not points.varying:
        return []
    told = " Above each panel: rank correlation over base settings, and p, how often chance makes any panel's as strong."
    above = told if foretold else ""
    return [
        Figure(
            "What correlates with the level after RL",
            plots.level_against(points, compared[:_MOST_ROWS], foretold),
            f"Each point is a cell: a measurement of the base model, and pass@1 after RL.{above}"
            + _few(_MOST_ROWS, len(compared), "settings; the correlations are over all"),
        )
    ]


def _few(most: int, count: int, what: str = "settings") -> str:
    """The caption's note where only the first are drawn."""
    return f" The first {most} of {count} {what}." if count > most else ""


def _training(drawn: Sequence[MeasuredSetting], home: Home, few: str) -> list[Figure]:
    found = []
    runs = {
        kind: [(setting.name, [stage_rows(e.plan, kind, home) for e in setting.before]) for setting in drawn]
        for kind in ("rl", "pretrain", "midtrain", "sft")
    }
    bands = " Bands: lowest to highest seed." if any(len(setting.before) > 1 for setting in drawn) else ""
    runs["rl"] = [(name, [timed(run) for run in of_setting]) for name, of_setting in runs["rl"]]
    rl_rows = [row for _, of_setting in runs["rl"] for run in of_setting for row in run]
    known = {metric for row in rl_rows for metric in row}
    panels = [panel for panel in _RL_PANELS if any(row.get(panel[0]) for row in rl_rows)]
    if panels:
        curve = plots.training_curves(runs["rl"], panels, x="step", label="RL step")
        found.append(Figure("RL dynamics", curve, f"Running means over a tenth of the run.{bands}{few}"))
    validated = sorted((metric for metric in known if metric.startswith("validation/pass@")), key=lambda m: int(m.split("@")[1]))
    if validated:
        panels = [(metric, metric.removeprefix("validation/")) for metric in dict.fromkeys([validated[0], validated[-1]])]
        panels += [("validation/length", "response tokens"), *(panel for panel in _KL_PANELS if panel[0] in known)]
        found += [
            Figure(
                f"Validation during RL, at equal {label}",
                plots.training_curves(runs["rl"], panels, x=x, label=label),
                f"On held-out problems of the RL split.{why}{bands}{few}",
            )
            for x, label, why in (
                ("step", "steps", ""),
                ("rollouts_generated", "rollouts", " A prior whose groups lack signal samples more per step."),
                ("seconds", "seconds", " Of training steps, without start-up and validation itself."),
            )
        ]
    for kind, title in (("pretrain", "Pre-training"), ("midtrain", "Mid-training"), ("sft", "Fine-tuning")):
        if any(run for _, of_setting in runs[kind] for run in of_setting):
            curve = plots.training_curves(runs[kind], _PRETRAIN_PANELS, x="tokens", label="tokens")
            found.append(Figure(title, curve, f"Measured on the training batches; the first tenth is not drawn.{bands}{few}"))
    return found
