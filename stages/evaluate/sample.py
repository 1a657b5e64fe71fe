"""Sample responses with vLLM: n per problem at each temperature of the protocol, and one greedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config.evaluation import EvaluateConfig
from stages.contract import Stage
from stages.tasks import Problem

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

# Problems per engine call: enough to keep it full, few enough to report progress.
_PROBLEMS_PER_CALL = 32


@dataclass(frozen=True)
class Sample:
    problem: Problem
    number: int | None
    """From 0 among the problem's samples of this temperature; None for its greedy response."""
    temperature: float
    """0 for the greedy response."""
    text: str
    tokens: tuple[int, ...]
    log_prob: float | None
    """Of the whole response, under the distribution it was sampled from (temperature and top-p applied); None for the greedy one."""
    truncated: bool

    @property
    def greedy(self) -> bool:
        return self.number is None

    @property
    def length(self) -> int:
        """Tokens, end-of-text included."""
        return len(self.tokens)


def sample(engine: LLM, problems: list[Problem], protocol: EvaluateConfig, stage: Stage) -> list[Sample]:
    """All samples at the protocol's temperature, problem by problem, each problem's greedy response first; then those at each further
    temperature. These come last because they draw from the same generator: the first ones are the same whatever follows.
    """
    samples: list[Sample] = []
    passes = ((0.0, protocol.temperature), *((temperature,) for temperature in protocol.temperatures))
    for number, together in enumerate(passes):
        kinds = {temperature: _parameters(protocol, temperature) for temperature in together}
        for start in range(0, len(problems), _PROBLEMS_PER_CALL):
            shown = {"temperature": together[-1]} if protocol.temperatures else {}
            stage.progress(number * len(problems) + start, len(passes) * len(problems), "problems", **shown)
            samples += _call(engine, problems[start : start + _PROBLEMS_PER_CALL], kinds)
    return samples


def _parameters(protocol: EvaluateConfig, temperature: float) -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(
        n=protocol.samples if temperature else 1,
        temperature=temperature,
        top_p=protocol.top_p if temperature else 1.0,
        max_tokens=protocol.max_response_tokens,
        logprobs=0 if temperature else None,  # the sampled token's alone
        detokenize=False,  # the engine would decode token by token, a quarter of its time for small models
    )


def _call(engine: LLM, batch: list[Problem], kinds: dict[float, SamplingParams]) -> list[Sample]:
    """The responses to a batch, problem by problem, each at every temperature."""
    prompts = [problem.prompt for problem in batch]
    results = engine.generate(prompts * len(kinds), [kind for kind in kinds.values() for _ in batch], use_tqdm=False)
    tokenizer = engine.get_tokenizer()
    return [
        one
        for index, problem in enumerate(batch)
        for temperature, result in zip(kinds, results[index :: len(batch)], strict=True)
        for one in _samples_of(problem, result, tokenizer, temperature)
    ]


def _samples_of(problem: Problem, result: RequestOutput, tokenizer: Any, temperature: float) -> list[Sample]:
    texts = tokenizer.batch_decode([output.token_ids for output in result.outputs], skip_special_tokens=True)
    return [
        Sample(
            problem,
            number if temperature else None,
            temperature,
            text,
            tuple(output.token_ids),
            output.cumulative_logprob,
            output.finish_reason == "length",
        )
        for number, (text, output) in enumerate(zip(texts, result.outputs, strict=True))
    ]
