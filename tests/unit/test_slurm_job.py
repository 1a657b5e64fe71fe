"""A Slurm job that was cut off: whether to requeue it."""

from pathlib import Path

from pipeline.run.slurm.job import StageJob
from pipeline.run.slurm.queue import SlurmJob, job_name, lost_job
from pipeline.store.folders import Home, StageFolder, status_of
from tests.conftest import smoke_graph


def test_a_time_limit_reached_without_progress_fails_with_what_to_do(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    stuck = StageJob("pretrain", str(tmp_path), 1, 1, minutes=1, commit="test", hub=False, saves=True, grace_seconds=1)
    assert stuck.checkpoint() is None
    assert "raise cluster.pretrain.minutes (it is 1), or lower pretrain.launch.save_steps" in status_of(folder)["message"]
    (folder.checkpoints / "checkpoint-50").mkdir(parents=True)
    (folder.checkpoints / "checkpoint-50" / "complete").touch()
    assert stuck.checkpoint() is not None


def test_a_live_job_whose_submitter_was_killed_before_it_wrote_the_id_down_is_found_by_its_name(tmp_path: Path) -> None:
    node = smoke_graph("axes.prior=[ce]", "rl=null").cells[0].chain["corpus"]
    folder = node.folder(Home(tmp_path / "home"))
    name = job_name(node, folder)
    jobs = {
        "1": SlurmJob("1", name, "FAILED", ""),
        "2": SlurmJob("2", job_name(node, node.folder(Home(tmp_path / "other"))), "RUNNING", ""),  # of the same stage, for another home
        "3": SlurmJob("3", name, "PENDING", "Priority"),
    }
    found = lost_job(node, folder, jobs)
    assert found is not None
    assert found.id == "3"
    assert lost_job(node, folder, {number: job for number, job in jobs.items() if number != "3"}) is None
