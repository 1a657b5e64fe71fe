"""The stage `pretrain`, which also records its process's peak memory during training, beyond its libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pipeline.store.files import write_json_atomically
from stages.contract import Stage, main
from stages.pretrain.__main__ import run


def _kib(name: str) -> int:
    """VmRSS: now; VmHWM: the peak since the last reset."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


class _Peak(TrainerCallback):
    """Measures before a step checkpoint is written, which takes extra memory."""

    def __init__(self, stage: Stage) -> None:
        self.file = stage.folder.path / f"measured-{stage.rank}.json"
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _kib("VmRSS")

    def on_step_end(self, *_: object, **__: object) -> None:
        write_json_atomically(self.file, {"bytes": (_kib("VmHWM") - self.before) * 1024})


def measured(stage: Stage) -> dict[str, Any]:
    from stages.training.process import prepare

    prepare(threads=1)
    import deepspeed  # noqa: F401  (libraries, before counting starts)

    from stages.next_token import train

    peak = _Peak(stage)
    trainer = train.NextTokenTrainer

    class Measured(trainer):  # type: ignore[misc, valid-type]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.add_callback(peak)

    train.NextTokenTrainer = Measured  # type: ignore[misc]
    return run(stage)


if __name__ == "__main__":
    main("pretrain", measured)
