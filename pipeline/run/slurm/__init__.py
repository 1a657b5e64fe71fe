"""Stages as Slurm jobs: `queue` asks and tells Slurm, `job` is what runs in a job, `runner` submits a graph and follows it."""
