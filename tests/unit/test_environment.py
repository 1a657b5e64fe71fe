"""A stage process's environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import build_graph
from pipeline.run.launch import environment, process_environment
from pipeline.run.surroundings import forget_surroundings
from pipeline.store.folders import Home
from tests.wandb_files import read_runs


@pytest.mark.parametrize(("task", "offline"), [("countdown", "1"), ("arithmetic", "1"), ("gsm8k", "0"), ("math500", "0")])
def test_only_tasks_with_data_on_the_hub_go_online(task: str, offline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (plan,) = build_graph(load_recipe("quickstart", [f"task={task}", "model.max_positions=2048"]).cells()).cells
    for role in ("corpus", "rl"):
        assert environment(plan.chain[role], 0, "test")["HF_HUB_OFFLINE"] == offline
    assert environment(plan.chain["pretrain"], 0, "test")["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the user's choice wins
    assert environment(plan.chain["corpus"], 0, "test")["HF_HUB_OFFLINE"] == "1"


def test_the_order_of_sets_is_the_same_in_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    (plan,) = build_graph(load_recipe("quickstart").cells()).cells
    assert environment(plan.chain["corpus"], 0, "test")["PYTHONHASHSEED"] == "0"


OF_ANOTHER_JOB = (
    *(f"WANDB_{name}" for name in ("RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH", "RESUME", "NAME", "NOTES", "TAGS", "RUN_GROUP")),
    *(f"WANDB_{name}" for name in ("JOB_TYPE", "DIR", "PROJECT", "CONFIG_PATHS", "PROGRAM", "SERVICE", "LAUNCH_QUEUE_NAME")),
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP",
    "FSDP_SHARDING_STRATEGY",
    "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID", "VLLM_DP_RANK", "MKL_NUM_THREADS",
    "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_MEM_PER_CPU", "SLURM_CPU_BIND", "GIT_DIR", "GIT_INDEX_FILE", "PRIORLAB_LOCK_FD",
    "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONUSERBASE",
)  # fmt: skip
OF_THE_USER = (
    "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_ENTITY", "WANDB_CACHE_DIR", "WANDB_INIT_TIMEOUT", "WANDB__SERVICE_WAIT",
    "WANDB_X_GRAPHQL_RETRY_MAX",
    "HF_HOME", "HF_TOKEN", "HF_ENDPOINT", "HF_DATASETS_CACHE", "TRANSFORMERS_VERBOSITY", "CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME",
    "VLLM_USE_FLASHINFER_SAMPLER", "SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_ACCOUNT", "PRIORLAB_HOME", "https_proxy", "TMPDIR", "PATH",
)  # fmt: skip


@pytest.mark.parametrize("name", OF_ANOTHER_JOB)
def test_what_describes_a_surrounding_job_reaches_neither_stage_nor_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "the caller's")
    assert process_environment(1, None, "test", hub=False).get(name) != "the caller's"
    for other in os.environ:  # so that what the next line deletes comes back
        monkeypatch.setenv(other, os.environ[other])
    forget_surroundings()
    assert name not in os.environ


@pytest.mark.parametrize("name", OF_THE_USER)
def test_what_the_user_has_chosen_reaches_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "chosen")
    for other in os.environ:
        monkeypatch.setenv(other, os.environ[other])
    assert process_environment(1, None, "test", hub=False)[name] == "chosen"
    forget_surroundings()
    assert os.environ[name] == "chosen"


def test_a_surrounding_wandb_run_or_sweep_does_not_take_over_a_stages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_ID", "SWEEP_ID", "PROJECT", "NAME", "RUN_GROUP", "JOB_TYPE", "TAGS", "NOTES"):
        monkeypatch.setenv(f"WANDB_{name}", "theirs")
    monkeypatch.setenv("WANDB_RESUME", "must")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "theirs"))
    (plan,) = build_graph(load_recipe("quickstart").cells()).cells
    node = plan.chain["pretrain"]
    (tmp_path / "spec.json").write_text(json.dumps(node.spec(Home(tmp_path), "mine")))
    track = (
        "import json, sys; from pathlib import Path; from pipeline.config.tracking import TrackingConfig; "
        "from pipeline.tracking.runs import StageRun; folder = Path(sys.argv[1]); "
        "StageRun(json.loads((folder / 'spec.json').read_text()), folder, TrackingConfig(mode='offline')).finish({}, folder)"
    )
    subprocess.run([sys.executable, "-c", track, str(tmp_path)], env=environment(node, 0, "test"), check=True)
    (run,) = read_runs(tmp_path)
    assert (run.id, run.project, run.group, run.job_type) == (node.fingerprint[:32], "priorlab", "mine", "pretrain")
    assert run.name == f"pretrain-{node.slug}"
    assert "theirs" not in run.tags
    assert not (tmp_path / "theirs").exists()
