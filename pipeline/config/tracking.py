"""Where runs are tracked. Execution only."""

from __future__ import annotations

from typing import Literal

from pipeline.config.base import Config, execution


class TrackingConfig(Config):
    """Weights & Biases. `auto` is online when a key is found (environment or netrc), else offline."""

    mode: Literal["auto", "online", "offline", "disabled"] = execution("auto")
    project: str = execution("priorlab")
    entity: str | None = execution(None)
    artifacts: bool = execution(False, description="log what stages export as artifacts with lineage: references, no uploads")
