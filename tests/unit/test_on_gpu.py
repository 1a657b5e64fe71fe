"""`scripts/on-gpu` without a GPU: what it would run is valid, it keeps to its time, and its page has what there is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import build_graph
from scripts.benchmarks import on_gpu
from scripts.benchmarks.on_gpu import ROOT, Part, parts


@pytest.mark.parametrize("with_gpu", [True, False])
def test_what_it_runs_is_there_and_can_be_planned(with_gpu: bool, tmp_path: Path) -> None:
    every = parts(tmp_path, on_gpu=with_gpu)
    assert [part.name for part in every[:4]] == ["doctor", "tests", "chain", "loss"]
    for part in every:
        assert all((ROOT / word).exists() for word in part.command if word.startswith(("scripts/", "tests/")))
        if "--set" in part.command:
            changes = part.command[part.command.index("--set") + 1 :]
            (plan,) = build_graph(load_recipe("quickstart", changes).cells()).cells
            assert plan.cell.recipe.rl is not None
            assert plan.cell.recipe.rl.dtype == "bfloat16"


def test_a_part_that_takes_too_long_is_ended_and_what_it_printed_is_kept(tmp_path: Path) -> None:
    part = Part("long", ["sh", "-c", "echo begun; sleep 600"], 600)
    on_gpu._run(part, 5)
    assert (part.output, part.ended) == ("begun\n", "ended after 5 s, unfinished")
    page = on_gpu._page([part, Part("next", ["-"], 1)])
    assert "| long | ended after 5 s, unfinished |\n| next | not begun: no time was left |" in page
    assert "```\nbegun\n```" in page


def test_a_part_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = Part("chain", [sys.executable, "-c", "raise SystemExit(3)"], 60)
    monkeypatch.setattr(on_gpu, "parts", lambda *_, **__: [failing])
    monkeypatch.setattr(sys, "argv", ["on-gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        on_gpu.main()
    assert end.value.code == 1
    assert "| chain | failed with 3 |" in (tmp_path / "page.md").read_text()
