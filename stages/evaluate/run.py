"""The stage `evaluate`: samples, verdicts and held-out statistics of one checkpoint, all kept per problem or block."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer

from pipeline.config.stages import EvaluateStage
from pipeline.config.tasks import MathTask
from pipeline.errors import PriorlabError
from stages.contract import Stage
from stages.corpus.pack import Blocks
from stages.corpus.tokenizer import check_prompts
from stages.engine import build_engine, close
from stages.evaluate.distribution import heldout_statistics
from stages.evaluate.harness import benchmark
from stages.evaluate.majority import majority_at_k
from stages.evaluate.metrics import (
    consensus,
    distinct_answers,
    distinct_share,
    doubling_ks,
    pass_at_k,
    pass_hat_k,
    potential_at_k,
)
from stages.evaluate.sample import Sample, sample
from stages.evaluate.selection import picking_orders, selection_metrics
from stages.tasks import Problem, Verdict, build_task
from stages.tasks.math import Math
from stages.tasks.verifier import Verifier

Metrics = dict[str, dict[str, list[float]]]
"""metric -> k -> one value per problem, in problem order."""


def evaluate(stage: Stage) -> dict[str, Any]:
    """Writes export/{samples.parquet, problems.json} and returns the means for the record."""
    config = stage.config_as(EvaluateStage)
    protocol = config.evaluate
    problems = build_task(config.task).problems("evaluate", protocol.problems, protocol.seed)
    _refuse_trained_on(config, problems)
    checkpoint, heldout_text = stage.parent("checkpoint", config.step), stage.parent("corpus", part="heldout")
    shapes = heldout_statistics(
        stage, checkpoint, Blocks(heldout_text), count=protocol.heldout_blocks, head_k=protocol.head_k, dtype=protocol.dtype,
        temperatures=(1.0, *((protocol.temperature, *protocol.temperatures) if protocol.temperatures else ())),
    )  # fmt: skip
    heldout = shapes[1.0]
    benchmarks: dict[str, Any] = {}
    if protocol.harness is not None:
        stage.progress(0, 0, "benchmarks")
        benchmarks = benchmark(checkpoint, protocol, protocol.harness, stage.folder.path / "harness")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    check_prompts(problems, tokenizer, config.task.max_prompt_tokens)
    stage.progress(0, 0, "starting the engine")
    engine = build_engine(
        checkpoint,
        dtype=protocol.dtype,
        seed=protocol.seed,
        max_tokens=config.task.max_prompt_tokens + protocol.max_response_tokens,
        kv_cache_gib=protocol.kv_cache_gib,
        gpu_memory_share=protocol.gpu_memory_share,
        settings=protocol.engine,
    )
    samples = sample(engine, problems, protocol, stage)
    close(engine)
    stage.progress(0, 0, "verifying")
    with Verifier(partial(build_task, config.task), protocol) as verifier:
        verdicts = verifier.verify((sample.problem, sample.text) for sample in samples)
        counts = verifier.finish()
    scored = list(zip(samples, verdicts, strict=True))
    further = {
        at: problem_metrics([one for one in scored if one[0].temperature == at], protocol.samples) for at in protocol.temperatures
    }
    scored = [one for one in scored if one[0].temperature in (0, protocol.temperature)]
    per_problem = problem_metrics(scored, protocol.samples)
    if protocol.selection is not None:
        stage.progress(0, 0, "selecting samples")
        drawn = [(one, verdict) for one, verdict in scored if not one.greedy]
        groups = [drawn[start : start + protocol.samples] for start in range(0, len(drawn), protocol.samples)]
        prompts = tokenizer([problem.prompt for problem in problems])["input_ids"]
        orders = picking_orders(
            checkpoint,
            prompts,
            [[one for one, _ in g] for g in groups],
            protocol.selection,
            protocol.seed,
            getattr(torch, protocol.dtype),
        )
        per_problem |= selection_metrics(np.array([[verdict.correct for _, verdict in g] for g in groups]), orders)

    def write(folder: Path) -> None:
        pq.write_table(_samples_table(samples, verdicts), folder / "samples.parquet")
        details = {"problems": [p.id for p in problems], "metrics": per_problem, "heldout": heldout}
        if further:
            found = {protocol.temperature: per_problem} | further
            details["temperatures"] = {str(at): {"metrics": metrics, "heldout": shapes[at]} for at, metrics in found.items()}
        (folder / "problems.json").write_text(json.dumps(details), encoding="utf-8")
        if benchmarks:
            (folder / "harness.json").write_text(json.dumps(benchmarks, indent=1), encoding="utf-8")

    stage.export(write)
    means, shape = _means(per_problem), {name: float(np.mean(values)) for name, values in heldout.items()}
    for at, metrics in further.items():
        means |= {f"temperature_{at}/{name}": value for name, value in _means(metrics).items()}
        means[f"temperature_{at}/entropy"] = float(np.mean(shapes[at]["entropy"]))
    means |= {f"harness/{name}": float(np.mean(values)) for name, values in benchmarks.get("values", {}).items()}
    return means | shape | {
        "perplexity": float(np.exp(shape["cross_entropy"])),
        "chance": config.task.chance,
        "truncated": float(np.mean([one.truncated for one, _ in scored if not one.greedy])),
        "verifier_timeouts": counts.timeouts,
        "verifier_errors": counts.errors,
    }  # fmt: skip


def _refuse_trained_on(config: EvaluateStage, problems: list[Problem]) -> None:
    """Raises `PriorlabError` if training may have seen one of the problems: it leaves out only what `task.held_out` declares."""
    if not isinstance(config.trained_on, MathTask):
        return
    seen = Math(config.trained_on).trained_on(*config.trained_splits) & {problem.id for problem in problems}
    if seen:
        example = next(problem.prompt for problem in problems if problem.id in seen)
        raise PriorlabError(
            f"training may have seen {len(seen)} of the {len(problems)} problems of the evaluation set {config.task.name!r}, such as "
            f"{example[:60]!r}; add the set to task.held_out, which trains again without them, or leave it out of evaluate.sets"
        )


def _means(metrics: Metrics) -> dict[str, float]:
    return {f"{name}/{k}": float(np.mean(values)) for name, by_k in metrics.items() for k, values in by_k.items()}


def problem_metrics(scored: list[tuple[Sample, Verdict]], n: int) -> Metrics:
    """Of the n samples per problem at one temperature, and of the greedy responses where these are among them."""
    by_problem: dict[str, list[tuple[Sample, Verdict]]] = defaultdict(list)
    greedy: dict[str, float] = {}
    greedy_length: dict[str, float] = {}
    for one, verdict in scored:
        if one.greedy:
            greedy[one.problem.id], greedy_length[one.problem.id] = float(verdict.correct), float(one.length)
        else:
            by_problem[one.problem.id].append((one, verdict))
    groups = list(by_problem.values())
    correct = np.array([sum(verdict.correct for _, verdict in group) for group in groups])
    answers = [[verdict.answer for _, verdict in group] for group in groups]
    rights = [[verdict.correct for _, verdict in group] for group in groups]
    of_correct = [[str(verdict.answer) for _, verdict in group if verdict.correct] for group in groups]
    further = {
        f"{rule}_pass@k": np.array([sum(verdict.further.get(rule, False) for _, verdict in group) for group in groups])
        for rule in _further_rules([verdict for _, verdict in scored])
    }
    of_greedy = {"greedy": {"1": list(greedy.values())}, "greedy_length": {"1": list(greedy_length.values())}} if greedy else {}
    return {
        "pass@k": {str(k): pass_at_k(correct, n, k).tolist() for k in doubling_ks(n)},
        "pass^k": {str(k): pass_hat_k(correct, n, k).tolist() for k in doubling_ks(n)},
        **{name: {str(k): pass_at_k(counts, n, k).tolist() for k in doubling_ks(n)} for name, counts in further.items()},
        "potential@k": {str(k): potential_at_k(correct, n, k).tolist() for k in doubling_ks(n)[1:]},
        "distinct_correct": {str(n): distinct_share(of_correct).tolist()},
        "avg@n": {str(n): (correct / n).tolist()},
        "cons@n": {str(n): [float(consensus(*of_problem)) for of_problem in zip(answers, rights, strict=True)]},
        "maj@k": {
            str(k): [majority_at_k(*of_problem, k) for of_problem in zip(answers, rights, strict=True)] for k in doubling_ks(n)[:-1]
        },
        "distinct_answers": {str(n): [distinct_answers(of_problem) for of_problem in answers]},
        "response_entropy": {str(n): [-float(np.mean([one.log_prob for one, _ in group])) for group in groups]},
        **of_greedy,
        "length": {str(n): [float(np.mean([one.length for one, _ in group])) for group in groups]},
    }


def _further_rules(verdicts: list[Verdict]) -> list[str]:
    """Names of the further rules. A response that the verifier failed on has no verdict by them, which counts as wrong."""
    return list(dict.fromkeys(rule for verdict in verdicts for rule in verdict.further))


def _samples_table(samples: list[Sample], verdicts: list[Verdict]) -> pa.Table:
    return pa.table(
        {
            "problem_id": [s.problem.id for s in samples],
            "sample": pa.array([s.number for s in samples], pa.int32()),
            "greedy": [s.greedy for s in samples],
            "temperature": [s.temperature for s in samples],
            "text": [s.text for s in samples],
            "answer": [v.answer for v in verdicts],
            "correct": [v.correct for v in verdicts],
            "length": pa.array([s.length for s in samples], pa.int32()),
            "truncated": [s.truncated for s in samples],
            "log_prob": pa.array([s.log_prob for s in samples], pa.float32()),
            **{rule: [v.further.get(rule, False) for v in verdicts] for rule in _further_rules(verdicts)},
        }
    )
