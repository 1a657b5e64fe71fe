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


NEW = ["sm_80", "sm_90", "sm_100"]
H200 = ("NVIDIA H200", 9, 0)


@pytest.mark.parametrize(
    ("driver", "cuda", "devices", "ok", "said"),
    [
        ("580.65.06", None, [], False, "torch is built for CPUs; remove .venv and set up again with PRIORLAB_DEVICE=gpu"),
        (None, "13.0", [], False, "no NVIDIA driver responds"),
        ("550.54.14", "13.0", [H200], False, "driver 550.54.14 is too old for torch's CUDA 13.0; install 580 or newer"),
        ("550.54.14", "12.9", [H200], True, "1 GPU(s): NVIDIA H200; driver 550.54.14, CUDA 12.9"),
        ("580.65.06", "13.0", [], False, "torch sees no GPU"),
        ("580.65.06", "13.0", [("Tesla V100", 7, 0)], False, "no kernels for Tesla V100 (compute capability 7.0)"),
        ("580.65.06", "13.0", [H200, H200], True, "2 GPU(s): NVIDIA H200, NVIDIA H200; driver 580.65.06, CUDA 13.0"),
        ("580.65.06", "13.0", [("RTX 6000", 8, 9)], True, "1 GPU(s): RTX 6000"),
    ],
)
def test_driver_torch_and_gpu_must_fit_together(
    driver: str | None, cuda: str | None, devices: list[doctor.Gpu], ok: bool, said: str
) -> None:
    found = doctor.fit(driver, cuda=cuda, architectures=NEW, devices=devices)
    assert (found.ok, found.name) == (ok, "devices")
    assert said in found.text


def test_without_a_driver_any_build_of_torch_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CONTROL", tmp_path / "none")
    monkeypatch.setattr(doctor, "_driver", lambda: None)
    assert doctor._devices() == doctor.Finding("devices", True, "no GPU; CPU only")


def test_a_gpu_without_bfloat16_is_told_so() -> None:
    found = doctor.fit("525.10", cuda="12.4", architectures=["sm_75", "sm_80"], devices=[("Tesla T4", 7, 5)])
    assert (found.ok, found.text.rpartition("; ")[2]) == (True, "too old for bfloat16, so train in float32")
