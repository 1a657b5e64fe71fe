"""The stage `pretrain`. Heavy imports wait until the environment of the process is prepared."""

from typing import Any

from pipeline.config import PretrainStage
from stages.contract import Stage, heavy_imports, main


def run(stage: Stage) -> dict[str, Any]:
    from stages.processes import prepare

    prepare(stage.config_as(PretrainStage).pretrain.launch.threads)
    with heavy_imports():
        from stages.pretrain.train import train

    return train(stage)


if __name__ == "__main__":
    main("pretrain", run)
