"""The store: atomic files, manifests, locks, names."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import PriorlabError
from pipeline.store.files import manifest_of, read_json, take_lock, write_json_atomically
from pipeline.store.folders import Home, StageFolder, verify_manifest


def test_a_home_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "home"
    file.write_text("")
    monkeypatch.setenv("PRIORLAB_HOME", str(file))
    with pytest.raises(PriorlabError, match=r"home \(PRIORLAB_HOME\) is not a folder"):
        Home.from_environment()
    monkeypatch.setenv("PRIORLAB_HOME", "")
    assert Home.from_environment().path == Path("runs").absolute()


def test_a_write_that_the_disk_refuses_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json_atomically(path, {"state": "old"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_json_atomically(path, {"state": "new" * 10_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_json(path) == {"state": "old"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_is_no_utf8_can_be_written_down(tmp_path: Path) -> None:
    path = os.fsdecode(b"/data/caf\xe9")
    write_json_atomically(tmp_path / "spec.json", {"path": path})
    assert read_json(tmp_path / "spec.json") == {"path": path}


def test_a_flipped_byte_and_a_missing_file_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "pretrain-0123" / "export"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    manifest = manifest_of(folder)
    verify_manifest(folder, manifest)
    (folder / "model.safetensors").write_bytes(b"weighty")
    (folder / "config.json").unlink()
    with pytest.raises(PriorlabError) as error:
        verify_manifest(folder, manifest)
    assert "model.safetensors has sha256" in str(error.value)
    assert "config.json is missing" in str(error.value)
    assert "priorlab stage pretrain-0123 --force" in str(error.value)


def test_an_unreadable_record_says_which_file(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    folder.record_file.write_text("{half")
    with pytest.raises(PriorlabError, match=r"record\.json is not readable JSON"):
        folder.record()


def test_a_lock_is_exclusive_and_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path; from pipeline.store.files import take_lock; take_lock(Path({str(path)!r})); "
         "print('held', flush=True); import time; time.sleep(60)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    assert take_lock(path) is None
    assert f"process {holder.pid}" in path.read_text()
    holder.kill()
    holder.wait()
    descriptor = take_lock(path)
    assert descriptor is not None
    os.close(descriptor)


def test_a_second_driver_of_a_sweep_is_told_who_runs_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with (
        home.sweep_lock("mine"),
        pytest.raises(PriorlabError, match=rf"sweep 'mine' is already run by process {os.getpid()}"),
        home.sweep_lock("mine"),
    ):
        pass
    with home.sweep_lock("mine"):
        pass


def test_stages_are_found_by_name_path_and_digits(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for slug, digits in (("ce-s0", "aaaa11112222"), ("tail-s0", "aaaa33334444")):
        folder = home.stage("pretrain", slug, digits).path
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text("{}")
    expected = home.path / "stages" / "pretrain" / "ce-s0-aaaa11112222"
    for name in ("ce-s0-aaaa11112222", "aaaa1111", str(expected)):
        assert home.find_stage(name).path == expected
    with pytest.raises(PriorlabError, match="matches several stages"):
        home.find_stage("aaaa")
    with pytest.raises(PriorlabError, match="no stage 'bbbb'"):
        home.find_stage("bbbb")


def test_a_stage_made_under_another_label_is_reused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first = home.stage("pretrain", "ce-s0", "aaaa11112222ff")
    first.path.mkdir(parents=True)
    assert home.stage("pretrain", "baseline-s0", "aaaa11112222ff").path == first.path


def test_clearing_forgets_the_record_first_and_keeps_the_logs(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    attempt = folder.new_attempt()
    (attempt / "stdout.log").write_text("what happened")
    folder.record_file.write_text("{}")
    folder.export.mkdir()
    folder.clear()
    assert folder.record() is None
    assert not folder.export.exists()
    assert folder.last_log() == attempt / "stdout.log"
    assert folder.new_attempt().name == "0002"
