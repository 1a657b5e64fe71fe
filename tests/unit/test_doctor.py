"""`doctor`: what this machine has, as findings and not as crashes."""

import sys
from pathlib import Path

import pytest

from pipeline.home import doctor
from pipeline.home.doctor import examine
from pipeline.store.folders import Home


def test_every_check_is_a_finding_and_missing_slurm_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no sinfo there, wherever the tests run
    found = {finding.name: finding for finding in examine(Home(tmp_path / "not" / "yet"))}
    assert list(found) == ["python", "packages", "vllm", "devices", "machine", "disk", "wandb", "slurm"]
    assert (found["slurm"].ok, found["slurm"].text) == (True, "not installed; stages run on this machine")
    assert "GiB free" in found["disk"].text


@pytest.mark.parametrize(("version", "ok"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 13, 4), True), ((3, 14, 0), False)])
def test_the_python_must_be_one_that_the_package_allows(version: tuple[int, ...], ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    found = doctor._python()
    assert (found.ok, found.text.partition(" ")[0]) == (ok, ".".join(map(str, version)))
