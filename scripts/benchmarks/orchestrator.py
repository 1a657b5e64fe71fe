"""What the orchestrator itself costs and how that grows: by number of cells, and by how many stages run at once.

    .venv/bin/python scripts/benchmarks/orchestrator.py --json orchestrator.json
    .venv/bin/python scripts/benchmarks/orchestrator.py --cells 10 100 1000 --finished 10 100 --running

Each figure measures a real command in its own process, imports and output included. `plan`: a sweep of that many cells, none of
which exists. `first report`: the comparison is computed and written; `with W&B`: it is also logged, offline. `no-op`: `priorlab sweep`
where every stage has its record and the comparison is written. `status`: `priorlab status --json` on the same home. `report opens`: its
report.html in Chromium, if installed. `watching`: the scheduler's share of a core while that many stages run at once, on GPUs of this
machine or of a cluster: their status files are there, their processes are not. The exponent of each is the slope, on logarithmic axes,
of its CPU seconds between the two largest sizes.

The seconds per stage come from stages that do nothing, one after the other: from the end of one's work to the first line of the next,
less a Python process that only imports what they import. Memory is the command's peak, CPU its own seconds: on a busy machine they say
more than the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.cli.view import PlainView
from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import Graph, StageNode, build_graph
from pipeline.run.backend import Backend, Command, Seen
from pipeline.run.scheduler import Scheduler
from pipeline.run.state import StageState
from pipeline.store.files import manifest_of, write_json_atomically
from pipeline.store.folders import Home

ROOT = Path(__file__).parent.parent.parent
GOALS = {("plan", 10_000): 10.0, ("no-op", 1000): 5.0, ("status", 1000): 2.0, ("report opens", 1000): 3.0}
OVERHEAD_GOAL = 1.0
_WATCHED_SECONDS = 20.0
_CHAIN = ("axes.prior=[ce, tail, head]", "axes.seed=[0, 1]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="*", default=[10, 100, 1000, 10_000], help="sizes of sweeps to plan")
    parser.add_argument("--finished", type=int, nargs="*", default=[10, 100, 1000], help="sizes of finished sweeps")
    parser.add_argument("--running", type=int, nargs="*", default=[10, 100, 1000], help="how many stages run at once")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for cells in arguments.cells:
        with tempfile.TemporaryDirectory() as home:
            rows.append(_row("plan", cells, *_priorlab(Path(home), "plan", "smoke", *_axes(cells))))
    for cells in arguments.finished:
        with tempfile.TemporaryDirectory() as home:
            _finish_everything(Home(Path(home)), _axes(cells))
            rows.append(_row("first report", cells, *_priorlab(Path(home), "sweep", "smoke", *_axes(cells))))
            report = Home(Path(home)).sweep("smoke") / "report.html"
            rows += _opening(report, cells)
            report.unlink()
            rows.append(_row("with W&B", cells, *_priorlab(Path(home), "report", "smoke", wandb="offline")))
            rows.append(_row("no-op", cells, *_priorlab(Path(home), "sweep", "smoke", *_axes(cells))))
            rows.append(_row("status", cells, *_priorlab(Path(home), "status", "--json")))
    for running in arguments.running:
        with tempfile.TemporaryDirectory() as home:
            rows.append(_row("watching", running, _WATCHED_SECONDS, _watching(Home(Path(home)), running)))
    print("\nexponents: " + ", ".join(f"{what} {exponent:.2f}" for what, exponent in _exponents(rows).items()))
    overhead = _overhead()
    imports, gap = overhead["imports_s"], overhead["end_to_start_s"]
    print(
        f"\nper stage: {gap:.2f} s from one's end to the next one's first line, of which {imports:.2f} s are Python imports; ", end=""
    )
    print(f"the rest is {gap - imports:.2f} s (goal {OVERHEAD_GOAL:g} s)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "per_stage": overhead}, indent=2) + "\n", encoding="utf-8")


def _axes(cells: int) -> list[str]:
    """A sweep of that many cells: five priors, and for each a tenth as many policies on two seeds."""
    rates = [round(1e-5 * (number + 1), 8) for number in range(cells // 10)]
    return ["axes.prior=[ce,tail,head,precision,diversity]", "axes.seed=[0,1]", f"axes.rl.optimizer.learning_rate={json.dumps(rates)}"]


def _priorlab(home: Path, *command: str, wandb: str = "disabled") -> tuple[float, float, float]:
    """A command's wall-clock seconds, CPU seconds and GiB; its output goes to a file, like a log."""
    environment = os.environ | {"PRIORLAB_HOME": str(home), "WANDB_MODE": wandb, "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    with (home / "printed").open("wb") as printed:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *command], cwd=ROOT, env=environment, stdout=printed)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    if status:
        sys.exit(f"priorlab {command[0]} failed")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def _opening(report: Path, cells: int) -> list[dict[str, Any]]:
    """Until Chromium has laid the report out, ready to be sorted; nothing if it is not installed."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.goto("about:blank")
        started = time.perf_counter()
        page.goto(report.as_uri())
        page.locator("table.sortable thead button").first.wait_for()
        return [_row("report opens", cells, time.perf_counter() - started)]


class _Steady(Backend):
    """Every stage has room and none ends, as a cluster looks for hours. What a real backend asks Slurm is not counted."""

    chains = False
    stopping = ""

    def start(self, state: StageState) -> Seen:
        return Seen("running")

    def poll(self, active: Sequence[StageState]) -> Iterator[tuple[StageState, Seen]]:
        return iter(())

    def interrupt(self, active: Sequence[StageState], *, kill: bool) -> list[StageState]:
        return []


def _watching(home: Home, running: int) -> float:
    """CPU seconds that the real scheduler and its plain view take while so many stages run for `_WATCHED_SECONDS`."""
    graph = build_graph(load_sweep("smoke", ["axes.prior=[ce]", f"axes.seed={json.dumps(list(range(running)))}"]).cells())
    nodes = [node for node in graph.stages.values() if node.kind == "pretrain"]
    cluster = graph.cells[0].cell.recipe.cluster
    states = [StageState(node, node.folder(home)) for node in nodes]
    for state in states:
        state.folder.path.mkdir(parents=True)
        write_json_atomically(state.folder.status, {"step": 3, "total": 9, "unit": "steps", "seconds": 2.0}, durable=False)
    with Path(os.devnull).open("w") as nowhere:
        command = Command(home, "smoke", cluster, running, "none", "stages")
        scheduler = Scheduler(states, _Steady(command), cluster.retries, PlainView(Console(file=nowhere)))
        threading.Timer(_WATCHED_SECONDS, scheduler.stop).start()
        before = time.process_time()
        scheduler.loop()
        return time.process_time() - before


def _exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By what was measured, how CPU seconds grow from the second-largest size to the largest."""
    found = {}
    for what in dict.fromkeys(row["what"] for row in rows if "cpu_seconds" in row):
        sizes = sorted((row["cells"], row["cpu_seconds"]) for row in rows if row["what"] == what)
        if len(sizes) > 1:
            (few, less), (many, more) = sizes[-2:]
            found[what] = math.log(more / less) / math.log(many / few)
    return found


def _row(what: str, cells: int, seconds: float, cpu: float | None = None, gib: float | None = None) -> dict[str, Any]:
    goal = GOALS.get((what, cells))
    aim = "" if goal is None else f"  (goal {goal:g} s)"
    used = ("" if cpu is None else f"  {cpu:>7.2f} s of CPU") + ("" if gib is None else f"  {gib:.2f} GiB")
    print(f"{what:<13} {cells:>6,} {'stages' if what == 'watching' else 'cells'}  {seconds:>7.2f} s{used}{aim}", flush=True)
    row = {"what": what, "cells": cells, "seconds": round(seconds, 3)}
    return row | {name: round(value, 3) for name, value in (("cpu_seconds", cpu), ("memory_gib", gib)) if value is not None}


def _finish_everything(home: Home, axes: list[str]) -> None:
    """Minimal records and exports of every stage of the sweep."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    graph: Graph = build_graph(load_sweep("smoke", axes).cells())
    problems = [f"p{number}" for number in range(64)]
    sample = {"problem_id": ["p0"], "sample": pa.array([-1], pa.int32()), "text": ["1"], "answer": ["1"], "correct": [True]}
    samples = pa.table(sample | {"length": pa.array([1], pa.int32()), "truncated": [False]})
    numbers = random.Random(0)
    for node in graph.stages.values():
        folder = node.folder(home)
        folder.export.mkdir(parents=True)
        write_json_atomically(folder.spec, node.spec(home, "smoke"), durable=False)
        if node.kind == "evaluate":
            write_json_atomically(folder.export / "problems.json", _evaluation(problems, numbers), durable=False)
            pq.write_table(samples, folder.export / "samples.parquet")
        elif node.kind in ("pretrain", "rl"):
            row = {"loss": 1.0, "perplexity": 2.0, "entropy": 1.0, "tail_mass": 0.1, "reward_raw": 0.5, "completions/mean_length": 3.0}
            folder.metrics.write_text(
                "".join(json.dumps(row | {"step": s, "tokens": s}) + "\n" for s in range(1, 11)), encoding="utf-8"
            )
        write_json_atomically(folder.record_file, _record(node, manifest_of(folder.export)), durable=False)


def _evaluation(problems: list[str], numbers: random.Random) -> dict[str, Any]:
    """As the stage `evaluate` writes it, for 8 samples per problem."""
    right = [numbers.randrange(9) for _ in problems]
    metrics = {
        "pass@k": {str(k): [1 - math.comb(8 - c, k) / math.comb(8, k) for c in right] for k in (1, 2, 8)},
        "avg@n": {"8": [c / 8 for c in right]},
        "cons@n": {"8": [float(c > 4) for c in right]},
        "greedy": {"1": [float(c > 4) for c in right]},
        "greedy_length": {"1": [float(c + 1) for c in right]},
        "length": {"8": [float(c + 1) for c in right]},
    }
    heldout = {name: [numbers.uniform(0.1, 2) for _ in problems] for name in ("cross_entropy", "entropy", "head_mass", "tail_mass")}
    return {"problems": problems, "metrics": metrics, "heldout": heldout}


def _record(node: StageNode, manifest: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": node.kind, "fingerprint": node.fingerprint, "recipe_version": 1, "identity": node.config.identity(),
        "parents": {role: parent.fingerprint for role, parent in node.parents.items()}, "manifest": manifest, "metrics": {},
        "provenance": {"started": 1.0, "seconds": 1.0, "commit": "none", "packages": {}},
    }  # fmt: skip


def _overhead() -> dict[str, float]:
    """Medians over the stages of a sweep that runs one at a time."""
    imports = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import tests.pipeline.tiny"], cwd=ROOT, check=True)
        imports.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log"
        environment = os.environ | {"PRIORLAB_HOME": f"{place}/home", "TINY_LOG": str(log), "OMP_NUM_THREADS": "1"}
        driver = [sys.executable, "-m", "tests.pipeline.tiny.driver", "chain", "1", *_CHAIN]
        subprocess.run(driver, cwd=ROOT, env=environment, check=True, capture_output=True)
        lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    gaps = [
        float(start[3]) - float(end[3])
        for end, start in zip(lines[1::2], lines[2::2], strict=False)  # start, end, start, end, ...
    ]
    return {"imports_s": round(statistics.median(imports), 3), "end_to_start_s": round(statistics.median(gaps), 3)}


if __name__ == "__main__":
    main()
