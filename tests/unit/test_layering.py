"""The two halves: `pipeline` starts fast and without torch; `stages` never reach into the runner."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "transformers", "deepspeed", "trl", "vllm", "datasets", "accelerate"}
OPEN_TO_STAGES = {
    "pipeline.config",
    "pipeline.errors",
    "pipeline.store.files",
    "pipeline.store.lease",
    "pipeline.store.folders",
    "stages.die_with_parent",
    "pipeline.tracking.runs",
}


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: path.name)
def test_pipeline_imports_neither_stages_nor_heavy_libraries(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imported_modules(path)}
    assert not tops & (HEAVY | {"stages"})


@pytest.mark.parametrize("path", sorted((ROOT / "stages").rglob("*.py")), ids=lambda path: path.name)
def test_stages_import_only_the_shared_part_of_pipeline(path: Path) -> None:
    used = {".".join(name.split(".")[:2]) for name in imported_modules(path) if name.partition(".")[0] == "pipeline"}
    assert used <= OPEN_TO_STAGES


def test_the_command_line_starts_at_once_and_without_heavy_libraries() -> None:
    code = "import sys; import pipeline.cli; print(*sys.modules)"
    took = []
    for _ in range(2):  # the first start may compile bytecode
        started = os.times()
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
        ended = os.times()
        took.append(ended.children_user + ended.children_system - started.children_user - started.children_system)
    assert not HEAVY & set(loaded)
    assert not {"wandb", "matplotlib", "pyarrow"} & set(loaded)
    assert min(took) < 3.0  # of processor time, so that a busy machine does not count; usually 0.6
