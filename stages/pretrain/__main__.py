"""The stage `pretrain`. Heavy imports wait until the process environment is prepared."""

from typing import Any

from pipeline.config.stages import PretrainStage
from pipeline.errors import PriorlabError
from stages.contract import Stage, heavy_imports, main


def run(stage: Stage) -> dict[str, Any]:
    from stages.training.process import prepare

    config = stage.config_as(PretrainStage)
    settings = config.pretrain
    if settings.adopted is not None:
        raise PriorlabError(
            f"pretrain.adopted is {settings.adopted}, a checkpoint that is not in this home and cannot be trained here; bring it "
            "in with `priorlab adopt CHECKPOINT --as RECIPE`, with the same corpus overrides"
        )
    prepare(settings.launch.threads)
    with heavy_imports():
        from stages.next_token.train import corpus_of, train
        from stages.pretrain.model import build_model

    tokenizer, blocks = corpus_of(stage)
    return train(
        stage, settings, config.prior, config.seed, tokenizer, blocks, lambda: build_model(config.model, tokenizer, config.seed)
    )


if __name__ == "__main__":
    main("pretrain", run)
