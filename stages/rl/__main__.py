"""The stage `rl`. Heavy imports wait: verifier workers import this file anew and must start fast."""

from typing import Any

from pipeline.config.stages import RLStage
from stages.contract import Stage, heavy_imports, main


def run(stage: Stage) -> dict[str, Any]:
    from stages import engine
    from stages.training import process as processes

    threads = stage.config_as(RLStage).rl.launch.threads
    engine.prepare(threads)
    processes.prepare(threads)
    with heavy_imports():
        from stages.rl.train import train

    return train(stage)


if __name__ == "__main__":
    main("rl", run)
