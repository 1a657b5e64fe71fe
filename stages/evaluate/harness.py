"""Benchmarks of lm-evaluation-harness (lm-eval, an optional package), on vLLM where there is a GPU, on transformers elsewhere.

They run in a separate process: its engine's memory is freed before ours starts, and a task that runs what a model wrote finds no
keys in its environment. That is not a sandbox, so such tasks are refused unless asked for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.evaluation import EvaluateConfig, HarnessConfig, task_folder_digest
from pipeline.errors import PriorlabError, nearest
from pipeline.store.files import read_json
from stages.device import has_gpu, memory_share
from stages.die_with_parent import die_with

_KEYS = ("WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_HUB_KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Gated datasets need them; where code is run, the data must be in the hub's cache instead."""
_INSTALL = "install it into the environment with `.venv/bin/python -m pip install lm-eval==0.4.13`"


def benchmark(checkpoint: Path, protocol: EvaluateConfig, harness: HarnessConfig, place: Path) -> dict[str, Any]:
    """`values`: one number per problem, by "TASK/METRIC" ("TASK/METRIC,FILTER" for a named filter), and what lm-eval reports as
    `results` and `versions`. Files are exchanged in `place`.

    Raises:
        PriorlabError: the package is missing; a task is unknown, changed, or runs code and may not.
    """
    if harness.folder is not None and task_folder_digest(Path(harness.folder)) != harness.sha256:
        raise PriorlabError(f"{harness.folder} (evaluate.harness.folder) has changed since the run was planned; run the command again")
    place.mkdir(parents=True, exist_ok=True)
    request, answer = place / "request.json", place / "answer.json"
    answer.unlink(missing_ok=True)
    settings = {
        "checkpoint": str(checkpoint),
        "dtype": protocol.dtype,
        "seed": protocol.seed,
        "gpu_share": protocol.gpu_memory_share * memory_share(),
    }
    request.write_text(json.dumps(settings | {"harness": harness.model_dump(mode="json")}), encoding="utf-8")
    hidden = {*_KEYS, "PRIORLAB_LOCK_FD", *(_HUB_KEYS if harness.allow_code else ())}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-m", "stages.evaluate.harness", str(request), str(answer)]
    code = subprocess.run(command, env=kept | {"HF_ALLOW_CODE_EVAL": str(int(harness.allow_code))}, check=False).returncode
    found = read_json(answer)
    if not isinstance(found, dict):
        raise RuntimeError(f"lm-eval exited with code {code}; its output is above")
    if "refused" in found:
        raise PriorlabError(found["refused"])
    return found


def main() -> None:
    die_with(os.getppid(), signal.SIGKILL)
    request, answer = (Path(argument) for argument in sys.argv[1:])
    try:
        found = _run(json.loads(request.read_text(encoding="utf-8")))
    except PriorlabError as error:
        found = {"refused": str(error)}
    answer.write_text(json.dumps(found), encoding="utf-8")


def _run(request: dict[str, Any]) -> dict[str, Any]:
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise PriorlabError(f"evaluate.harness needs the package lm-eval ({error}); {_INSTALL}") from error
    harness = HarnessConfig.model_validate(request["harness"])
    manager = TaskManager(include_path=harness.folder)
    _check_tasks(harness, manager)
    on_gpu = has_gpu()
    model = {"pretrained": request["checkpoint"], "dtype": request["dtype"]}
    results = lm_eval.simple_evaluate(
        model="vllm" if on_gpu else "hf",
        model_args=model | {"gpu_memory_utilization": request["gpu_share"], "seed": request["seed"]} if on_gpu else model,
        tasks=_with_examples(manager, harness.tasks, harness.fewshot) if isinstance(harness.fewshot, dict) else list(harness.tasks),
        num_fewshot=None if isinstance(harness.fewshot, dict) else harness.fewshot,
        batch_size="auto" if on_gpu else harness.batch,
        device=None if on_gpu else "cpu",
        limit=harness.limit,
        bootstrap_iters=0,  # we have our own
        task_manager=manager,
        confirm_run_unsafe_code=harness.allow_code,
    )
    return {"values": _values(results["samples"]), "results": results["results"], "versions": results["versions"]}


def _with_examples(manager: Any, names: Sequence[str], numbers: Mapping[str, int]) -> list[Any]:
    """Loaded tasks and groups, those in `numbers` with so many examples; a task that is zero-shot by its own file stays so, as ever."""
    found: list[Any] = []
    for name in names:
        loaded = manager.load([name])
        for task in loaded["tasks"].values() if name in numbers else ():
            if task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=numbers[name])
        found += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    return found


def _check_tasks(harness: HarnessConfig, manager: Any) -> None:
    """Before the model is loaded. Raises `PriorlabError` for a task that is unknown, or runs code and may not."""
    unknown = [task for task in harness.tasks if task not in manager.all_tasks]
    if unknown:
        near = nearest(unknown[0], manager.all_tasks)
        hint = f"did you mean {near!r}? " if near else ""
        raise PriorlabError(f"evaluate.harness.tasks has {unknown[0]!r}, unknown to lm-eval; {hint}`lm-eval ls tasks` lists them")
    if harness.allow_code:
        return
    refusal = (
        "run code that the model wrote, with only a time limit; set evaluate.harness.allow_code=true where that can do no harm, or "
        "leave them out"
    )
    try:
        loaded = manager.load(list(harness.tasks))["tasks"]
    except ValueError as error:
        if "HF_ALLOW_CODE_EVAL" not in str(error):  # some of these tasks try their scorer on loading
            raise
        raise PriorlabError(f"some of evaluate.harness.tasks ({', '.join(harness.tasks)}) {refusal}") from error
    running = [name for name, task in loaded.items() if getattr(task, "UNSAFE_CODE", False)]
    if running:
        raise PriorlabError(f"of evaluate.harness.tasks, {', '.join(running)} {refusal}")


def _values(samples: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Metrics with one number per problem, in problem order; others (corpus BLEU) are only in `results`."""
    found: dict[str, list[float]] = {}
    for task, rows in samples.items():
        for row in sorted(rows, key=lambda row: row["doc_id"]):
            for metric in row["metrics"]:
                if isinstance(row[metric], (bool, int, float)):
                    name = f"{task}/{metric}" if row["filter"] == "none" else f"{task}/{metric},{row['filter']}"
                    found.setdefault(name, []).append(float(row[metric]))
    return found


if __name__ == "__main__":
    main()
