"""The order of floors: a room imports only from lower floors, never from another room of its own, and no imports form a circle."""

import os
import subprocess
import sys

import pytest

from scripts.figures.house import PIPELINE, ROOT, STAGES, drawing, imported, modules, room

HEAVY = {"torch", "transformers", "deepspeed", "trl", "vllm", "datasets", "accelerate"}
EVERY = modules("pipeline") | modules("stages")
OPEN_TO_STAGES = {"pipeline.config", "pipeline.errors", "pipeline.store"}
"""What both halves share, beside the module `pipeline.tracking.runs`."""


@pytest.mark.parametrize(("package", "floors"), [("pipeline", PIPELINE), ("stages", STAGES)])
def test_every_module_lies_on_a_floor(package: str, floors: tuple[set[str], ...]) -> None:
    assert {room(name) for name in modules(package)} - {package} == set().union(*floors)


@pytest.mark.parametrize("name", EVERY)
def test_no_arrow_goes_up_or_across(name: str) -> None:
    floors = PIPELINE if name.startswith("pipeline") else STAGES
    package, own = name.partition(".")[0], room(name)
    level = next((number for number, floor in enumerate(floors) if own in floor), -1)
    for used in {room(other) for other in imported(EVERY[name]) if other.startswith(f"{package}.")} - {own}:
        assert any(used in floor for floor in floors[: max(level, 0)]), f"{name} imports {used}"


def test_no_module_is_imported_in_a_circle() -> None:
    def target(used: str) -> str | None:
        return used if used in EVERY else used.rpartition(".")[0] if used.rpartition(".")[0] in EVERY else None

    arrows = {name: {found for used in imported(path) if (found := target(used)) and found != name} for name, path in EVERY.items()}
    left = dict(arrows)
    while leaves := [name for name, used in left.items() if not used & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left, f"in circles: {sorted(left)}"


@pytest.mark.parametrize("name", modules("pipeline"))
def test_pipeline_imports_neither_stages_nor_heavy_libraries(name: str) -> None:
    assert not {used.partition(".")[0] for used in imported(EVERY[name])} & (HEAVY | {"stages"})


@pytest.mark.parametrize("name", modules("stages"))
def test_stages_import_only_the_shared_part_of_pipeline(name: str) -> None:
    used = {one for one in imported(EVERY[name]) if one.startswith("pipeline.")}
    assert {room(one) for one in used if not f"{one}.".startswith("pipeline.tracking.runs.")} <= OPEN_TO_STAGES


def test_the_command_line_starts_at_once_and_without_heavy_libraries() -> None:
    code = "import sys; import pipeline.cli.app; print(*sys.modules)"
    took = []
    for _ in range(2):  # the first start may compile bytecode
        started = os.times()
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
        ended = os.times()
        took.append(ended.children_user + ended.children_system - started.children_user - started.children_system)
    assert not HEAVY & set(loaded)
    assert not {"wandb", "matplotlib", "pyarrow"} & set(loaded)
    assert min(took) < 3.0  # of processor time, so that a busy machine does not count; usually 0.6


@pytest.mark.parametrize("package", ["pipeline", "stages"])
def test_the_drawing_in_the_guide_for_contributors_is_of_this_house(package: str) -> None:
    assert f"```mermaid\n{drawing(package)}\n```" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
