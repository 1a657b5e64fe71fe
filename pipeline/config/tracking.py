"""Where runs are tracked. Execution only."""

from __future__ import annotations

from typing import Literal

from pipeline.config.base import Config, execution


class TrackingConfig(Config):
    """Weights & Biases. `auto` is online when a key is found (environment or netrc), else offline."""

    mode: Literal["auto", "online", "offline", "disabled"] = execution("auto")
    project: str = execution("priorlab", min_length=1, max_length=128, pattern=r"^[^/\\#?%:]*$", description="as W&B takes it")
    entity: str | None = execution(None)
    artifacts: bool = execution(False, description="log exports as artifacts with lineage: references, no uploads")
