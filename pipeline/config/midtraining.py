"""Mid-training: the pre-trained model goes on learning from other text, in longer blocks, at a falling rate."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.base import execution
from pipeline.config.corpus import CorpusConfig
from pipeline.config.prior import Prior
from pipeline.config.training import NextTokenTraining


class MidtrainConfig(NextTokenTraining):
    """Optional stage between pre-training and RL. Weights go on from the pre-trained ones, the optimizer's moments start anew."""

    name: str = execution("midtrain")
    corpus: CorpusConfig | None = Field(None, description="text, cut by the first corpus's tokenizer; none given is the first corpus")
    prior: Prior | None = Field(None, description="none given is the pre-training's, as it was at its end")
    rope_base: float | None = Field(None, gt=0, description="none given is the model's")
