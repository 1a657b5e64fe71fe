"""Evaluation while RL runs: pass@k against steps and rollouts, on the rollout engine itself, and the best policy so far.

The problems come from the RL split but are not trained on. Measuring draws from random generators of its own, so that a run with
validation trains as one without. The best policy has the highest pass@`best_k`; of equals, the earliest. Its weights lie beside the
step checkpoints, and a superseded one is deleted only when a step checkpoint can no longer lead back to it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.config.rl import ValidationConfig
from pipeline.store.files import read_json, write_json_atomically
from stages.evaluate.metrics import doubling_ks, pass_at_k
from stages.tasks import Problem
from stages.tasks.verifier import Verifier
from stages.training.step_checkpoints import by_step

_PREFIX = "validation/"
_BEST = re.compile(r"best-(\d+)")


class Response(NamedTuple):
    """A sampled response; `ended` by itself rather than at the limit."""

    text: str
    tokens: int
    ended: bool
    log_ratio: float
    """log pi(response) - log pi_base(response), in nats."""


class Measured(NamedTuple):
    """A policy on the validation problems: `row` for metrics.jsonl, and by the problem's id how many of its samples are correct."""

    row: dict[str, float]
    solved: dict[str, int]


def validate(
    problems: list[Problem],
    settings: ValidationConfig,
    verifier: Verifier,
    respond: Callable[[list[Problem]], list[Response]],
    part: slice,
    gather: Callable[[list[Any]], list[Any]],
) -> Measured:
    """pass@k for k = 1, 2, 4, ..., the samples and `best_k`, mean length in tokens, share of responses that end by themselves, and
    the KL divergence from the base policy, estimated by the mean log-ratio, in nats per response and per token.

    Each rank samples and verifies its `part` of the problems; all get the same result.
    """
    mine = [at for at in range(len(problems))[part] for _ in range(settings.samples)]
    responses = respond([problems[at] for at in mine])
    verdicts = verifier.verify((problems[at], response.text) for at, response in zip(mine, responses, strict=True))
    rows = [(at, verdict.correct, *response[1:]) for at, verdict, response in zip(mine, verdicts, responses, strict=True)]
    of_problem, correct, tokens, ended, ratios = (np.array(column) for column in zip(*gather(rows), strict=True))
    solved = np.bincount(of_problem, weights=correct, minlength=len(problems))
    ks = sorted({*doubling_ks(settings.samples), settings.best_k})
    measured = {f"pass@{k}": float(pass_at_k(solved, settings.samples, k).mean()) for k in ks}
    measured |= {"length": float(tokens.mean()), "ended": float(ended.mean())}
    measured |= {"kl_response": float(ratios.mean()), "kl_token": float(ratios.sum() / tokens.sum())}
    by_id = {problem.id: int(count) for problem, count in zip(problems, solved, strict=True)}
    return Measured({_PREFIX + name: value for name, value in measured.items()}, by_id)


def record_solved(path: Path, step: int, solved: dict[str, int]) -> None:
    """Add a policy to the file of correct samples by step and problem; a step that is measured again replaces what it was."""
    known = read_json(path) or {}
    write_json_atomically(path, {**known, str(step): solved})


def best_step(rows: Iterable[dict[str, float]], best_k: int) -> int | None:
    """The step whose policy is the best of those in `rows` (of metrics.jsonl); None if none was measured."""
    scores = {int(row["step"]): row[f"{_PREFIX}pass@{best_k}"] for row in rows if f"{_PREFIX}pass@{best_k}" in row}
    return min(scores, key=lambda step: (-scores[step], step), default=None)


def best_folder(checkpoints: Path, step: int) -> Path:
    """Where the weights of the best policy of this step are kept."""
    return checkpoints / f"best-{step}"


def keep(checkpoints: Path, step: int, write: Callable[[Path], None], *, main: bool) -> None:
    """Save a policy as the best of `step`. Every rank must call it (`write` may gather partitions); one has the folder made whole."""
    building = checkpoints / "best.part"
    if not main:
        write(building)
        return
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    write(building)
    target = best_folder(checkpoints, step)
    shutil.rmtree(target, ignore_errors=True)
    building.replace(target)


def forget_others(checkpoints: Path, rows: Sequence[dict[str, float]], best_k: int) -> None:
    """Delete kept policies, except the best of `rows`, and of those up to each step checkpoint, which training may go back to."""
    last = max((row["step"] for row in rows), default=0)
    kept = {best_step([row for row in rows if row["step"] <= step], best_k) for step in (last, *by_step(checkpoints))}
    for folder in checkpoints.glob("best-*"):
        match = _BEST.fullmatch(folder.name)
        if match and int(match[1]) not in kept:
            shutil.rmtree(folder)
