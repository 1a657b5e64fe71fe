"""Mid-training: the pre-trained model trains further on other text, in longer blocks, at a falling rate."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.base import execution
from pipeline.config.corpus import CorpusConfig
from pipeline.config.prior import Prior
from pipeline.config.training import NextTokenTraining


class MidtrainConfig(NextTokenTraining):
    """Optional stage between pre-training and RL. Weights continue from pre-training; the optimizer's moments start afresh."""

    name: str = execution("midtrain")
    corpus: CorpusConfig | None = Field(None, description="text, tokenized like the first corpus; default: the first corpus")
    prior: Prior | None = Field(None, description="default: pre-training's, as it was at the end")
    rope_base: float | None = Field(None, gt=0, description="default: the model's")
