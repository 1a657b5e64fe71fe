"""The command `priorlab`. If only the loss is installed, it says how to install the rest: the extra cpu or gpu."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from pipeline.cli.app import main as run
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] in ("pipeline", "stages"):
            raise
        sys.exit(
            f"priorlab: {missing.name} is missing. Only the loss is installed; the pipeline needs the extra cpu or gpu. "
            "In a clone of priorlab: uv pip install --torch-backend=cpu '.[cpu]', or --torch-backend=cu130 '.[gpu]' with an NVIDIA GPU"
        )
    run()
