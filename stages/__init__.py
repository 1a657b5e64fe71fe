"""The heavy half of priorlab: each stage is `python -m stages.KIND --spec spec.json`."""
