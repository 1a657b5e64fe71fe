"""The stage `midtrain`. Heavy imports wait until the process environment is prepared."""

from typing import Any

from pipeline.config.stages import MidtrainStage
from stages.contract import Stage, heavy_imports, main


def run(stage: Stage) -> dict[str, Any]:
    from stages.training.process import prepare

    config = stage.config_as(MidtrainStage)
    settings = config.midtrain
    prepare(settings.launch.threads)
    with heavy_imports():
        from stages.midtrain.model import continued_model
        from stages.next_token.train import corpus_of, train

    base = stage.parent("checkpoint")
    tokenizer, blocks = corpus_of(stage)
    return train(
        stage, settings, config.prior, config.seed, tokenizer, blocks,
        lambda: continued_model(
            base, tokenizer, rope_base=settings.rope_base, positions=blocks.block_size, temperature=config.checkpoint_temperature
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main("midtrain", run)
