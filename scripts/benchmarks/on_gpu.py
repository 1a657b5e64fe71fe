"""What only a GPU can tell, on one page of Markdown: `scripts/on-gpu`.

    scripts/on-gpu                              # ten minutes; writes on-gpu/page.md
    scripts/on-gpu --minutes 5 --only loss rl   # these parts, in this order

In turn: what `priorlab doctor` finds; the tests marked `gpu`; the sweep `smoke` from scratch to its table; the benchmarks of the loss,
of pre-training, of RL and of evaluation at sizes that fit; the quickstart with four stages on the GPU. The page is written anew after
each part. A part that runs out of time is ended, and the page has what it printed until then. Without a GPU the parts run
at the size of the quickstart, and the page says so: a way to try the script, and nothing about a GPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.contract import provenance

ROOT = Path(__file__).parent.parent.parent
_LEAST_SECONDS = 20.0
"""A part is not begun with less."""
_SHOWN = 60
"""Lines of a part's output that the page has, from its end."""
_SMALL = ["model.layers=12", "model.width=1024", "model.ffn_width=3072", "model.heads=16", "model.kv_heads=16", "model.head_dim=64"]
"""A model of .2B parameters."""


@dataclass
class Part:
    """A command and what became of it."""

    name: str
    command: list[str]
    most_seconds: float
    """Of the whole time, at most so much, so that one part cannot take that of all others."""
    output: str = ""
    ended: str = "not begun: no time was left"
    environment: dict[str, str] = field(default_factory=dict)


def parts(scratch: Path, *, on_gpu: bool) -> list[Part]:
    """In the order in which they matter."""
    python, benchmarks = [sys.executable], "scripts/benchmarks"
    cli = [*python, "-m", "pipeline.cli"]
    home = {"PRIORLAB_HOME": str(scratch / "home")}
    found = [
        Part("doctor", [*cli, "doctor"], 60),
        Part("tests", [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"], 180),
        Part("chain", [*cli, "sweep", "smoke"], 150, environment=home),
    ]
    if not on_gpu:
        return [
            *found,
            Part("loss", [*python, f"{benchmarks}/loss.py", "--vocab", "2048", "--tokens", "1024", "--repeats", "2"], 180),
            Part("pretrain", [*python, f"{benchmarks}/pretrain.py", "--steps", "40", "--repeats", "1"], 180),
            Part("rl", [*python, f"{benchmarks}/rl.py", "--steps", "4", "--pretrain-steps", "40", "--repeats", "1"], 240),
            Part("evaluate", [*python, f"{benchmarks}/evaluate.py", "--repeats", "1"], 120),
        ]
    bf16 = [*_SMALL, "pretrain.dtype=bfloat16", "pretrain.launch.zero_stage=1", "rl.dtype=bfloat16", "rl.launch.zero_stage=1"]
    bf16.append("evaluate.dtype=bfloat16")
    long = ["corpus.block_size=1024", "model.max_positions=1024", "pretrain.launch.micro_batch=16", "pretrain.global_batch=64"]
    loss = [*python, f"{benchmarks}/loss.py", "--dtype", "bfloat16", "--head-k", "100", "--repeats", "5"]
    longer = ["--tokens", "32768", "--width", "1536", "--vocab", "151936", "--only", "beta|rank|cross"]
    pretrain = [*python, f"{benchmarks}/pretrain.py", "--zero-stage", "1", "--steps", "60", "--repeats", "1"]
    rl = [*python, f"{benchmarks}/rl.py", "--steps", "6", "--repeats", "1", "--pretrain-steps", "40"]
    groups = ["rl.prompts_per_step=32", "rl.samples_per_prompt=16", "rl.launch.micro_batch=32"]
    return [
        *found,
        Part("loss", [*loss, "--tokens", "8192", "--width", "2048", "--vocab", "32000", "151936"], 120),
        Part("loss, 32,768 tokens", [*loss, *longer], 120),
        Part("pretrain", [*pretrain, "--set", *bf16, *long], 180),
        Part("rl", [*rl, "--set", *bf16, *groups], 240),
        Part("evaluate", [*python, f"{benchmarks}/evaluate.py", "--repeats", "1", "--set", *bf16], 120),
        Part("quickstart", [*cli, "sweep", "quickstart", "cluster=local", "cluster.stages_per_gpu=4"], 300, environment=home),
    ]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line, or `words` in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="in all")
    parser.add_argument("--only", nargs="*", metavar="PART", help="these parts, in this order")
    parser.add_argument("--out", type=Path, default=Path("on-gpu"), help="folder of the page")
    return parser.parse_args(words)


def main() -> None:
    asked = arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    import torch

    every = {part.name: part for part in parts(asked.out.absolute(), on_gpu=torch.cuda.is_available())}
    unknown = set(asked.only or ()) - every.keys()
    if unknown:
        sys.exit(f"no part {unknown.pop()!r}; there are: {', '.join(every)}")
    chosen = [every[name] for name in asked.only] if asked.only else list(every.values())
    page, ends = asked.out / "page.md", time.monotonic() + 60 * asked.minutes
    for part in chosen:
        left = min(part.most_seconds, ends - time.monotonic())
        if left > _LEAST_SECONDS:
            print(f"{time.strftime('%H:%M:%S')} {part.name}, up to {left:.0f} s", flush=True)
            _run(part, left)
        page.write_text(_page(chosen), encoding="utf-8")
    print(f"page: {page}")
    if any(part.ended.startswith("failed") for part in chosen):
        sys.exit(1)


def _run(part: Part, seconds: float) -> None:
    """Run a part, for so long at most; what it printed is kept either way."""
    seen = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"} | part.environment
    started = time.monotonic()
    process = subprocess.Popen(
        part.command, cwd=ROOT, env=seen, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        part.output, _ = process.communicate(timeout=seconds)
        part.ended = f"done in {time.monotonic() - started:.0f} s" if not process.returncode else f"failed with {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 15)
        try:
            part.output, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            part.output, _ = process.communicate()
        part.ended = f"ended after {seconds:.0f} s, unfinished"


def _page(chosen: list[Part]) -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU, {platform.machine()}; says nothing about one"
    lines = [
        f"# On a GPU: {device}",
        "",
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, CUDA {torch.version.cuda}; {_versions()}.",
        "",
    ]
    lines += ["| part | |", "|---|---|", *(f"| {part.name} | {part.ended} |" for part in chosen)]
    for part in chosen:
        if part.output:
            shown = part.output.replace("\r", "\n").rstrip().splitlines()[-_SHOWN:]
            lines += [
                "",
                f"## {part.name[:1].upper()}{part.name[1:]}",
                "",
                f"`{' '.join(part.command[1:])}`: {part.ended}",
                "",
                "```",
                *shown,
                "```",
            ]
    return "\n".join(lines) + "\n"


def _versions() -> str:
    return ", ".join(f"{package} {version}" for package, version in provenance()["packages"].items())


if __name__ == "__main__":
    main()
