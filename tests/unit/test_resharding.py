"""Which step checkpoints a run on another number of processes may go on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.launch import Launch
from pipeline.errors import PriorlabError
from pipeline.store.files import write_json_atomically
from stages.training.ranks import Ranks
from stages.training.step_checkpoints import is_split_otherwise, last_complete


def checkpoint(folder: Path, *, processes: int, zero_stage: int) -> Path:
    saved = folder / "checkpoint-10"
    saved.mkdir(parents=True)
    write_json_atomically(saved / "complete", {"layout": {"processes": processes, "zero_stage": zero_stage}, "manifest": {}})
    return saved


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_another_number_of_processes_goes_on_under_zero_2_and_3(zero_stage: int, tmp_path: Path) -> None:
    saved = checkpoint(tmp_path, processes=2, zero_stage=zero_stage)
    for processes in (1, 2, 4):
        launch = Launch(processes=processes, zero_stage=zero_stage)
        assert last_complete(tmp_path, launch, Ranks(), any_processes=True) == saved
        assert is_split_otherwise(saved, launch) == (processes != 2)


@pytest.mark.parametrize(("saved", "ours", "any_processes"), [(0, 0, True), (1, 1, True), (2, 3, True), (3, 2, True), (3, 3, False)])
def test_what_was_not_tried_is_refused_with_both_layouts(saved: int, ours: int, any_processes: bool, tmp_path: Path) -> None:
    folder = tmp_path / "rl-x" / "checkpoints"
    checkpoint(folder, processes=2, zero_stage=saved)
    launch = Launch(processes=1, zero_stage=ours)
    layouts = rf"'processes': 2, 'zero_stage': {saved}.*'processes': 1, 'zero_stage': {ours}"
    with pytest.raises(PriorlabError, match=rf"{layouts}.*`priorlab stage rl-x --force`"):
        last_complete(folder, launch, Ranks(), any_processes=any_processes)


def test_a_folder_with_a_longer_name_is_no_step_checkpoint(tmp_path: Path) -> None:
    saved = checkpoint(tmp_path, processes=2, zero_stage=1)
    copied = tmp_path / f"{saved.name}-copy"
    copied.mkdir()
    assert last_complete(tmp_path, Launch(processes=2, zero_stage=1), Ranks()) == saved
    assert copied.is_dir()
