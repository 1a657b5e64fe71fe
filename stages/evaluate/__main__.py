"""The stage `evaluate`. Heavy imports wait: verifier workers import this file anew and must start fast."""

from typing import Any

from pipeline.config.stages import EvaluateStage
from stages.contract import Stage, heavy_imports, main


def run(stage: Stage) -> dict[str, Any]:
    from stages import engine
    from stages.training import process as processes

    processes.quiet()
    engine.prepare(stage.config_as(EvaluateStage).evaluate.threads)
    with heavy_imports():
        import vllm  # noqa: F401 (what the engine is made of; here its import is cheaper)

        from stages.evaluate.run import evaluate

    return evaluate(stage)


if __name__ == "__main__":
    main("evaluate", run)
