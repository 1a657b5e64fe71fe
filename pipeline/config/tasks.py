"""Tasks: problems, and where they come from. One config class per kind; `Task` is discriminated by `kind`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, execution, identity_since
from pipeline.config.digests import file_digest
from pipeline.errors import PriorlabError


class TaskConfig(Config):
    """What every task has."""

    max_prompt_tokens: int = execution(
        64, ge=1, description="room for a prompt, apart from the response; longer ones are refused, so it affects no result"
    )

    @property
    def reads_hub(self) -> bool:
        """Whether its data comes from the Hugging Face hub."""
        return False

    @property
    def chance(self) -> float:
        """Share of responses that guessing gets right: the floor below which scores mean nothing."""
        return 0.0

    def training_identity(self) -> dict[str, Any]:
        """The identity of what RL trains on and is rewarded by, without fields that only say what is evaluated."""
        return self.identity()

    def evaluation_identity(self) -> dict[str, Any]:
        """The identity of the problems it evaluates on and of their verdicts."""
        return self.identity()

    def text_identity(self) -> dict[str, Any]:
        """The identity of the text it writes, without fields that only judge responses: tasks that differ in these share a corpus."""
        return self.training_identity()

    def keeps_apart(self, other: Task) -> bool:
        """Whether training on this task cannot see the evaluation problems of `other`, by the two configs alone.

        Generated problems are split by what they are, whichever config draws them.
        """
        return True


class CountdownTask(TaskConfig):
    """Reach `target` with an expression that uses each given number exactly once."""

    kind: Literal["countdown"] = "countdown"
    name: str = execution("countdown")
    numbers: tuple[int, ...] = Field((4,), min_length=1, description="how many numbers a problem gives; drawn uniformly")
    largest_number: int = Field(9, ge=1)
    largest_target: int = Field(99, ge=0)
    operators: tuple[Literal["+", "-", "*"], ...] = Field(("+", "-", "*"), min_length=1)

    @model_validator(mode="after")
    def _few_numbers(self) -> CountdownTask:
        if any(not 2 <= count <= 6 for count in self.numbers):
            raise ValueError(f"numbers is {list(self.numbers)}; each count must be between 2 and 6")
        return self


class ArithmeticTask(TaskConfig):
    """The value of a chain such as `3+8*2-5`, worked out in steps; `operations` and the two bounds set the difficulty."""

    kind: Literal["arithmetic"] = "arithmetic"
    name: str = execution("arithmetic")
    operations: tuple[int, ...] = Field((3,), min_length=1, description="operations per problem; drawn uniformly")
    largest_number: int = Field(9, ge=1, lt=10**6)
    largest_value: int = Field(99, ge=1, lt=10**9, description="no intermediate result leaves 0..largest_value")
    operators: tuple[Literal["+", "-", "*"], ...] = Field(("+", "-", "*"), min_length=1)

    @model_validator(mode="after")
    def _short_chains(self) -> ArithmeticTask:
        if any(not 1 <= count <= 12 for count in self.operations):
            raise ValueError(f"operations is {list(self.operations)}; each count must be between 1 and 12")
        return self


class ParityTask(TaskConfig):
    """Parity of random bits (arXiv 2510.11495), worked out bit by bit in a share `p_cot` of the text, else given at once."""

    kind: Literal["parity"] = "parity"
    name: str = execution("parity")
    bits: int = Field(16, ge=2, le=128)
    p_cot: float = Field(0.2, ge=0, le=1, description="share of long chains in the text; below 1/3, greedy decoding guesses")
    reward: Literal["end-to-end", "chain"] = Field(
        "end-to-end", description="what counts as correct: the last bit alone, or the exact chain (the exact answer alone counts too)"
    )

    @property
    def chance(self) -> float:
        return 0.5

    def text_identity(self) -> dict[str, Any]:
        kept = super().text_identity()
        del kept["reward"]
        return kept


DATA_FORMATS = (".jsonl", ".parquet", ".csv")


class ProblemSource(Config):
    """The text of problems: a column of a dataset on the Hugging Face hub, or of a local file.

    Columns may be nested: `reward_model.ground_truth`, `prompt.0.content`. A file is identified by content: `sha256` is filled in when
    the recipe is read.
    """

    hub: str | None = Field(None, description="name of a dataset on the hub, e.g. openai/gsm8k")
    subset: str | None = None
    revision: str | None = Field(None, description="commit or tag of the dataset; default: the hub's latest")
    split: str = "train"
    file: str | None = execution(None, description="a .jsonl, .parquet or .csv file instead of a hub dataset")
    sha256: str | None = None
    problem: str = Field("problem", min_length=1, description="column of the problem's text")

    @model_validator(mode="before")
    @classmethod
    def _identify_file(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("file"), str) or data.get("sha256"):
            return data
        path = Path(data["file"]).expanduser().absolute()
        if path.suffix not in DATA_FORMATS:
            raise ValueError(f"file is {data['file']!r}; it must end in {', '.join(DATA_FORMATS)}")
        try:
            return data | {"file": str(path), "sha256": file_digest(path)}
        except OSError as error:
            raise ValueError(f"file is {data['file']!r}, which cannot be read: {error.strerror} ({path})") from error

    @model_validator(mode="after")
    def _one_place(self) -> ProblemSource:
        if (self.hub is None) == (self.file is None):
            raise ValueError(f"hub is {self.hub!r} and file {self.file!r}; give exactly one of the two (and null for the other)")
        return self

    def text(self) -> ProblemSource:
        """Where the problems' text is, and nothing else."""
        return ProblemSource.model_construct(**{name: getattr(self, name) for name in ProblemSource.model_fields})


class MathSource(ProblemSource):
    """Problems and their reference answers, with worked solutions or without."""

    answer: str = Field("answer", min_length=1, description="column of the reference answer; a list counts as one answer: a, b")
    answer_pattern: str | None = Field(None, description="regular expression whose first group is the answer within that column")
    solution: str | None = Field(None, description="column of a worked solution, to pre-train on")
    max_problem_characters: int | None = Field(None, ge=1, description="rows with longer problems are left out")

    @model_validator(mode="after")
    def _pattern_has_a_group(self) -> MathSource:
        if self.answer_pattern is not None:
            try:
                groups = re.compile(self.answer_pattern).groups
            except re.error as error:
                raise ValueError(f"answer_pattern is {self.answer_pattern!r}, which is not a regular expression: {error}") from error
            if groups < 1:
                raise ValueError(f"answer_pattern is {self.answer_pattern!r}; put a group, (...), around the answer")
        return self


class MathTask(TaskConfig):
    """Problems and answers from datasets, judged by math-verify.

    `train` feeds RL (and, if it has solutions, the corpus), `evaluate` the evaluation; without it, a fixed share of `train` does. Rows
    of `train` that `held_out` has too are dropped.
    """

    kind: Literal["math"] = "math"
    name: str = execution("math")
    max_prompt_tokens: int = execution(1024, ge=1)
    train: MathSource | None = None
    evaluate: MathSource | None = None
    held_out: tuple[ProblemSource, ...] | None = identity_since(
        None, description="problems that training must not see, also by the names of tasks; default: those of `evaluate`"
    )
    prompt: str = Field(
        "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.\n\n",
        description="what the model reads; {problem} is replaced, other braces are plain text",
    )
    chat_template: str | None = Field(
        None, description="Jinja chat template, as in a tokenizer's config, with the prompt as a user message"
    )
    system: str | None = Field(None, description="system message of the chat")
    special_tokens: dict[str, str] = identity_since({}, description="text of eos_token and others, where chat_template uses them")

    def identity(self) -> dict[str, Any]:
        """With the version of the rules that choose problems and judge answers: when they change, only math tasks run again."""
        return super().identity() | {"verdicts": 5}

    def training_identity(self) -> dict[str, Any]:
        """With `held_out` declared, `evaluate` decides no more than whether a share of `train` is kept for evaluation."""
        kept = self.identity()
        if self.held_out is not None and self.evaluate is not None:
            del kept["evaluate"]
        return kept

    def evaluation_identity(self) -> dict[str, Any]:
        kept = self.identity()
        if self.evaluate is not None:
            kept.pop("held_out", None)
        return kept

    def text_identity(self) -> dict[str, Any]:
        kept = super().text_identity()
        del kept["verdicts"]
        return kept

    @property
    def kept_from_training(self) -> tuple[ProblemSource, ...]:
        """`held_out`, or what stands for it."""
        if self.held_out is not None:
            return self.held_out
        return () if self.evaluate is None else (self.evaluate.text(),)

    def keeps_apart(self, other: Task) -> bool:
        if not isinstance(other, MathTask) or self.train is None:
            return True
        if other.evaluate is None:  # `other` uses a share of its own `train`, kept apart only if this task's share is the same
            return self.evaluate is None and self.training_identity() == other.training_identity()
        return other.evaluate.text().identity() in [source.identity() for source in self.kept_from_training]

    @property
    def reads_hub(self) -> bool:
        return any(source is not None and source.hub is not None for source in (self.train, self.evaluate, *(self.held_out or ())))

    @model_validator(mode="after")
    def _complete(self) -> MathTask:
        if self.train is None and self.evaluate is None:
            raise ValueError("train and evaluate are both missing; give the problems' source, e.g. train: {file: problems.jsonl}")
        if "{problem}" not in self.prompt:
            raise ValueError(f"prompt is {self.prompt!r}; it needs {{problem}} where the problem's text goes")
        if self.system is not None and self.chat_template is None:
            raise ValueError("system is set, but a system message needs a chat_template; set it too, or write the text into prompt")
        return self


class GymTask(TaskConfig):
    """A reasoning-gym task (arXiv 2505.24760), by name; installed as an optional extra."""

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    name: str = execution("reasoning-gym")
    max_prompt_tokens: int = execution(1024, ge=1)
    dataset: str = Field(min_length=1, description="name in reasoning-gym, e.g. chain_sum")
    options: dict[str, Any] = Field(default_factory=dict, description="settings of that dataset, e.g. min_terms")
    allow_code: bool = execution(False, description="datasets whose scorers may run what the model writes as code")
    prompt: str = Field("{question}\nAnswer: ", description="what the model reads; {question} is replaced, other braces are plain text")

    @model_validator(mode="after")
    def _complete(self) -> GymTask:
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt is {self.prompt!r}; it needs {{question}} where the question's text goes")
        ours = sorted({"seed", "size"} & self.options.keys())
        if ours:
            raise ValueError(f"options has {' and '.join(ours)}, which the stages set (corpus.seed, evaluate.problems, ...); drop it")
        return self


Task = Annotated[CountdownTask | ArithmeticTask | ParityTask | MathTask | GymTask, Field(discriminator="kind")]


def written_source(node: Any, named: Callable[[Any], dict[str, Any]], _: dict[str, Any]) -> Any:
    """An entry of `held_out` as written; a name stands for where the problems are that the task of that name evaluates on.

    `named` resolves it. Raises `PriorlabError` if that task evaluates on no problems of a dataset.
    """
    if not isinstance(node, str):
        return node
    found = named(node).get("evaluate")
    if not isinstance(found, dict):
        raise PriorlabError(
            f"task.held_out has {node!r}, a task without a dataset to evaluate on; name one with task.evaluate, or write "
            "the source out: {hub: NAME, split: test} or {file: problems.jsonl}"
        )
    return {key: value for key, value in found.items() if key in ProblemSource.model_fields}
