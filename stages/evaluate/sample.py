"""Sample responses with vLLM: n per problem at the protocol's temperature, and one greedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config.evaluation import EvaluateConfig
from stages.contract import Stage
from stages.tasks import Problem

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

# Problems per engine call: enough to keep it full, few enough to report progress.
_PROBLEMS_PER_CALL = 32
GREEDY = -1
"""The sample number of a problem's greedy response."""


@dataclass(frozen=True)
class Sample:
    problem: Problem
    number: int
    text: str
    tokens: tuple[int, ...]
    truncated: bool

    @property
    def length(self) -> int:
        """Tokens, end-of-text included."""
        return len(self.tokens)


def sample(engine: LLM, problems: list[Problem], protocol: EvaluateConfig, stage: Stage) -> list[Sample]:
    """All samples, problem by problem, each problem's greedy response first."""
    from vllm import SamplingParams

    tokenizer = engine.get_tokenizer()
    drawn = SamplingParams(
        n=protocol.samples,
        temperature=protocol.temperature,
        top_p=protocol.top_p,
        max_tokens=protocol.max_response_tokens,
        detokenize=False,  # the engine would decode token by token, a quarter of its time for small models
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=protocol.max_response_tokens, detokenize=False)
    samples: list[Sample] = []
    for start in range(0, len(problems), _PROBLEMS_PER_CALL):
        stage.progress(start, len(problems), "problems")
        batch = problems[start : start + _PROBLEMS_PER_CALL]
        prompts = [problem.prompt for problem in batch]
        results = engine.generate(prompts * 2, [greedy] * len(batch) + [drawn] * len(batch), use_tqdm=False)
        for problem, best, random in zip(batch, results[: len(batch)], results[len(batch) :], strict=True):
            samples += _samples_of(problem, best, tokenizer, first=GREEDY) + _samples_of(problem, random, tokenizer, first=0)
    return samples


def _samples_of(problem: Problem, result: RequestOutput, tokenizer: Any, first: int) -> list[Sample]:
    texts = tokenizer.batch_decode([output.token_ids for output in result.outputs], skip_special_tokens=True)
    return [
        Sample(problem, first + i, text, tuple(output.token_ids), output.finish_reason == "length")
        for i, (text, output) in enumerate(zip(texts, result.outputs, strict=True))
    ]
