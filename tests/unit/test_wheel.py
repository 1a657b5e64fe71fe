"""The wheel: what an installed priorlab needs is in it, it needs nothing of the repository, and the loss needs little."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
# As an installed command would: neither the repository nor the current folder is on the path.
_COMMAND = f"""
import sys
sys.path[:] = [place for place in sys.path if place not in ("", {str(ROOT)!r})]
import importlib.metadata, pipeline
assert pipeline.__file__.startswith(sys.path[0]), (pipeline.__file__, sys.path)
(command,) = importlib.metadata.distribution("priorlab").entry_points.select(group="console_scripts")
command.load()()
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("priorlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def priorlab(unpacked: Path, folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    places = {"PYTHONPATH": str(unpacked), "PRIORLAB_HOME": str(folder / "runs"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", before + _COMMAND, *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | places, capture_output=True, text=True, check=False)


def test_it_plans_smoke_from_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    done = priorlab(unpacked, tmp_path, "plan", "smoke")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\bpretrain\b", done.stdout)


def test_every_file_that_is_no_code_is_in_it(unpacked: Path) -> None:
    files = {path.relative_to(ROOT) for folder in ("pipeline", "stages") for path in (ROOT / folder).rglob("*") if path.is_file()}
    data = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert len(data) >= 2  # the report's template and script
    assert not {path for path in data if not (unpacked / path).is_file()}
    configs = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(unpacked / "pipeline") for path in unpacked.glob("pipeline/configs/**/*.yaml")} == configs


def test_without_an_extra_it_is_the_loss_in_any_version_of_torch_and_numpy(unpacked: Path) -> None:
    (distribution,) = metadata.distributions(name="priorlab", path=[str(unpacked)])
    required = [Requirement(line) for line in distribution.requires or []]
    always = {requirement.name: requirement.specifier for requirement in required if requirement.marker is None}
    assert set(always) == {"torch", "numpy"}
    assert {specifier.operator for versions in always.values() for specifier in versions} == {">="}
    assert always["torch"].contains(metadata.version("torch"))


def test_the_command_says_which_extra_is_missing(unpacked: Path, tmp_path: Path) -> None:
    done = priorlab(unpacked, tmp_path, "plan", "smoke", before="import sys; sys.modules['pydantic'] = None")
    assert done.returncode == 1
    assert done.stderr.startswith("priorlab: pydantic is missing. Only the loss is installed; the pipeline needs the extra cpu or gpu.")
    assert "'.[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr
