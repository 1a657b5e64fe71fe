"""The stage `evaluate`. Heavy imports wait: verifier workers import this file again and must start fast."""

from typing import Any

from pipeline.config.stages import EvaluateStage
from stages.contract import Stage, heavy_imports, main


def run(stage: Stage) -> dict[str, Any]:
    from stages import engine
    from stages.device import keep_to_share
    from stages.training import process as processes

    processes.quiet()
    engine.prepare(stage.config_as(EvaluateStage).evaluate.threads)
    keep_to_share()
    with heavy_imports():
        import vllm  # noqa: F401 (for the engine; importing it here is cheaper)

        from stages.evaluate.run import evaluate

    return evaluate(stage)


if __name__ == "__main__":
    main("evaluate", run)
