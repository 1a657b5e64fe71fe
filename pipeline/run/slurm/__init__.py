"""Stages as Slurm jobs: `queue` asks and tells Slurm, `job` is what runs in a job, `backend` submits stages and follows them."""
