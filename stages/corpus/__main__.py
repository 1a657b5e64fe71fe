"""The stage `corpus`. Heavy imports wait until the environment of the process is prepared."""

from typing import Any

from stages.contract import Stage, main


def run(stage: Stage) -> dict[str, Any]:
    from stages.training import process as processes

    processes.quiet()
    from stages.corpus.build import build

    return build(stage)


if __name__ == "__main__":
    main("corpus", run)
