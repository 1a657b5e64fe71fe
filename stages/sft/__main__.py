"""The stage `sft`. Heavy imports wait until the process environment is prepared."""

from typing import Any

from pipeline.config.stages import SFTStage
from stages.contract import Stage, heavy_imports, main


def run(stage: Stage) -> dict[str, Any]:
    from stages.training.process import prepare

    config = stage.config_as(SFTStage)
    settings = config.sft
    prepare(settings.launch.threads)
    with heavy_imports():
        from transformers import AutoTokenizer

        from stages.midtrain.model import continued_model
        from stages.next_token.train import train
        from stages.sft.solutions import find_solutions, pack

    base = stage.parent("checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    stage.progress(0, 0, "reading solutions")
    solutions = pack(find_solutions(config), tokenizer, settings.block_size)
    metrics = train(
        stage, settings, settings.prior, config.seed, tokenizer, solutions,
        lambda: continued_model(
            base, tokenizer, rope_base=None, positions=settings.block_size, temperature=config.checkpoint_temperature
        ),
    )  # fmt: skip
    return metrics | {"solutions": solutions.count, "too_long": solutions.too_long, "learned_share": solutions.learned_share}


if __name__ == "__main__":
    main("sft", run)
