"""A Slurm job that was cut off: whether to requeue it."""

from pathlib import Path

from pipeline.slurm.job import StageJob
from pipeline.store import StageFolder, status_of


def test_a_time_limit_reached_without_progress_fails_with_what_to_do(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    stuck = StageJob("pretrain", str(tmp_path), 1, 1, minutes=1, commit="test", hub=False, grace_seconds=1)
    assert stuck.checkpoint() is None
    assert "raise cluster.pretrain.minutes (it is 1), or lower pretrain.launch.save_steps" in status_of(folder)["message"]
    (folder.checkpoints / "checkpoint-50").mkdir(parents=True)
    (folder.checkpoints / "checkpoint-50" / "complete").touch()
    assert stuck.checkpoint() is not None
