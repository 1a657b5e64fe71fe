"""What of the caller's environment reaches stages and other programs that priorlab starts.

A surrounding job (a W&B sweep's agent, torchrun, accelerate, mpirun, Slurm, a git hook) describes itself in variables that libraries
would take for the stage's own. What describes the user's account, machine and choices is kept: keys, servers, caches, proxies, GPUs,
and all of HF_*, CUDA_*, NCCL_*, OMP_* and SBATCH_*. None of Python's own variables is kept: an interpreter imports the packages of its
installation, whatever the caller's PYTHONPATH holds.
"""

from __future__ import annotations

import os

_FAMILIES = (
    "WANDB_", "SLURM_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "OMPI_", "PMI_", "PMIX_", "MPI_LOCAL", "MV2_", "VLLM_DP_", "PYTHON"
)  # fmt: skip
_ALONE = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "PRIORLAB_LOCK_FD",
    "MKL_NUM_THREADS",  # which would win over OMP_NUM_THREADS, set by launch.threads
}  # fmt: skip
_KEPT = {
    # account and server
    "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_APP_URL", "WANDB_ENTITY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE",
    "WANDB_USERNAME", "WANDB_USER_EMAIL", "WANDB_HTTP_PROXY", "WANDB_HTTPS_PROXY", "WANDB_INSECURE_DISABLE_SSL",
    # whether and how to track
    "WANDB_MODE", "WANDB_HTTP_TIMEOUT", "WANDB_INIT_TIMEOUT", "WANDB_DEBUG", "WANDB_CORE_DEBUG", "WANDB_ERROR_REPORTING",
    # places
    "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR",
    # where Slurm's commands find their cluster
    "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT",
}  # fmt: skip


_SETTINGS = ("WANDB_X_", "WANDB__")
"""Of W&B's client: retries, proxies, waiting for its service. None of them says what a run is."""


def inherited() -> dict[str, str]:
    """The environment without what describes a surrounding job."""
    return {name: value for name, value in os.environ.items() if _is_the_users(name)}


def _is_the_users(name: str) -> bool:
    return name in _KEPT or name.startswith(_SETTINGS) or not (name in _ALONE or name.startswith(_FAMILIES))


def forget_surroundings() -> None:
    """Remove it from this process's environment, for what runs here (a sweep's W&B run) and what it starts (sbatch, git)."""
    for name in os.environ.keys() - inherited().keys():
        del os.environ[name]
