"""Typed configs of a recipe and its stages.

Every field is either *identity* (it decides the numbers a stage produces, and so its fingerprint) or *execution* (where and how it
runs; declared with `execution(...)`). `Config.identity()` keeps the first kind and normalises away knobs that cannot matter.
Torch-free: the stages import these types, and the planner must start in well under a second.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["float32", "bfloat16"]


def execution(default: Any, **constraints: Any) -> Any:
    """A field that must not change results, hence not the fingerprint."""
    return Field(default, json_schema_extra={"execution": True}, **constraints)


def identity_since(default: Any, **constraints: Any) -> Any:
    """An identity field that came after results had been made: at its default it is left out, so that they keep their fingerprints."""
    return Field(default, json_schema_extra={"left_out_at_default": True}, **constraints)


class Config(BaseModel):
    """Base of all configs: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that decide results, as plain JSON types."""
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("execution"):
                continue
            value = getattr(self, name)
            if isinstance(extra, dict) and extra.get("left_out_at_default") and value == field.default:
                continue
            kept[name] = value.identity() if isinstance(value, Config) else _plain(value)
        return kept


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class Prior(Config):
    """Setting of the shaped next-token objective (arXiv 2512.22955, Eqs. 11-13); all zero is cross-entropy.

    `k` is the size of the head (the k most probable tokens). It matters only when a lambda is not zero, `form` only when beta is not.
    """

    name: str = execution("custom")
    beta: float = Field(0.0, ge=-1.0, description="positive reward scaling; < 0 precision, > 0 diversity")
    lambda_head: float = Field(0.0, description="reward of wrong tokens inside the head")
    lambda_tail: float = Field(0.0, description="reward of tokens outside the head")
    k: int = Field(0, ge=0, description="size of the head, in tokens")
    form: Literal["product", "power"] = "product"

    @property
    def rank_aware(self) -> bool:
        return self.lambda_head != 0 or self.lambda_tail != 0

    @model_validator(mode="after")
    def _head_needs_a_size(self) -> Prior:
        if self.rank_aware and self.k < 1:
            raise ValueError(
                f"k is {self.k}, but lambda_head={self.lambda_head:g} and lambda_tail={self.lambda_tail:g} "
                "reward tokens by rank; give the size of the head, k >= 1"
            )
        return self

    def identity(self) -> dict[str, Any]:
        kept = super().identity()
        if not self.rank_aware:
            del kept["k"]
        if self.beta == 0:
            del kept["form"]
        return kept


class TaskConfig(Config):
    """What every task has."""

    max_prompt_tokens: int = execution(
        64, ge=1, description="room for a prompt beside the response; the stages refuse longer ones, so it decides no number"
    )

    @property
    def reads_hub(self) -> bool:
        """Whether its data come from the Hugging Face hub."""
        return False


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
    """The value of a chain such as `3+8*2-5`, reached by worked steps; `operations` and the two bounds set the difficulty."""

    kind: Literal["arithmetic"] = "arithmetic"
    name: str = execution("arithmetic")
    operations: tuple[int, ...] = Field((3,), min_length=1, description="how many operations a problem chains; drawn uniformly")
    largest_number: int = Field(9, ge=1, lt=10**6)
    largest_value: int = Field(99, ge=1, lt=10**9, description="no intermediate result leaves 0..largest_value")
    operators: tuple[Literal["+", "-", "*"], ...] = Field(("+", "-", "*"), min_length=1)

    @model_validator(mode="after")
    def _short_chains(self) -> ArithmeticTask:
        if any(not 1 <= count <= 12 for count in self.operations):
            raise ValueError(f"operations is {list(self.operations)}; each count must be between 1 and 12")
        return self


DATA_FORMATS = (".jsonl", ".parquet", ".csv")


class MathSource(Config):
    """Rows of problems and answers: a data set of the Hugging Face hub, or a local file.

    A column may lie inside another: `reward_model.ground_truth`, `prompt.0.content`. A file counts by its content: `sha256`, filled in
    when the recipe is read, is its identity wherever it lies.
    """

    hub: str | None = Field(None, description="name of a data set on the hub, e.g. openai/gsm8k")
    subset: str | None = None
    revision: str | None = Field(None, description="commit or tag of the data set; without it, whatever the hub has")
    split: str = "train"
    file: str | None = execution(None, description="a .jsonl, .parquet or .csv file instead of a data set of the hub")
    sha256: str | None = None
    problem: str = Field("problem", min_length=1, description="column of the problem's text")
    answer: str = Field("answer", min_length=1, description="column of the reference answer; several in a list are one answer, a, b")
    answer_pattern: str | None = Field(None, description="regular expression whose first group is the answer within that column")
    solution: str | None = Field(None, description="column of a worked solution, to pre-train on")
    max_problem_characters: int | None = Field(None, ge=1, description="rows with longer problems are left out")

    @model_validator(mode="before")
    @classmethod
    def _identify_file(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("file"), str) or data.get("sha256"):
            return data
        path = Path(data["file"]).expanduser().absolute()
        if path.suffix not in DATA_FORMATS:
            raise ValueError(f"file is {data['file']!r}; it must end in {', '.join(DATA_FORMATS)}")
        try:
            status = path.stat()
            return data | {"file": str(path), "sha256": sha256_of(path, status.st_mtime_ns, status.st_size)}
        except OSError as error:
            raise ValueError(f"file is {data['file']!r}, which cannot be read: {error.strerror} ({path})") from error

    @model_validator(mode="after")
    def _one_place(self) -> MathSource:
        if (self.hub is None) == (self.file is None):
            raise ValueError(f"hub is {self.hub!r} and file {self.file!r}; give exactly one of the two (and null for the other)")
        if self.answer_pattern is not None:
            try:
                groups = re.compile(self.answer_pattern).groups
            except re.error as error:
                raise ValueError(f"answer_pattern is {self.answer_pattern!r}, which is no regular expression: {error}") from error
            if groups < 1:
                raise ValueError(f"answer_pattern is {self.answer_pattern!r}; put a group, (...), around the answer")
        return self


@lru_cache(maxsize=64)
def sha256_of(path: Path, modified_ns: int, size: int) -> str:  # noqa: ARG001 (time and size make a changed file a new key)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class MathTask(TaskConfig):
    """Problems and answers from data sets, judged by math-verify.

    `train` feeds RL (and, if it has solutions, the corpus), `evaluate` the evaluation; without it, a fixed share of `train` does.
    """

    kind: Literal["math"] = "math"
    name: str = execution("math")
    max_prompt_tokens: int = execution(1024, ge=1)
    train: MathSource | None = None
    evaluate: MathSource | None = None
    prompt: str = Field(
        "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.\n\n",
        description="what the model reads; {problem} is replaced, other braces are plain text",
    )
    chat_template: str | None = Field(
        None, description="Jinja template of a chat, as in a tokenizer's config, around the prompt as a user message"
    )
    system: str | None = Field(None, description="system message of the chat")

    @property
    def reads_hub(self) -> bool:
        return any(source is not None and source.hub is not None for source in (self.train, self.evaluate))

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
    """A task of reasoning-gym (arXiv 2505.24760), by name; an optional extra of the installation."""

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    name: str = execution("reasoning-gym")
    max_prompt_tokens: int = execution(1024, ge=1)
    dataset: str = Field(min_length=1, description="name in reasoning-gym, e.g. chain_sum")
    options: dict[str, Any] = Field(default_factory=dict, description="settings of that data set, e.g. min_terms")
    prompt: str = Field("{question}\nAnswer: ", description="what the model reads; {question} is replaced, other braces are plain text")

    @model_validator(mode="after")
    def _complete(self) -> GymTask:
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt is {self.prompt!r}; it needs {{question}} where the question's text goes")
        ours = sorted({"seed", "size"} & self.options.keys())
        if ours:
            raise ValueError(
                f"options has {' and '.join(ours)}, which the stages choose (corpus.seed, evaluate.problems, ...); drop it"
            )
        return self


Task = Annotated[CountdownTask | ArithmeticTask | MathTask | GymTask, Field(discriminator="kind")]


class CorpusConfig(Config):
    """Text of the task's worked solutions, tokenised and packed into equal blocks."""

    name: str = execution("corpus")
    documents: int = Field(ge=1)
    heldout_documents: int = Field(ge=1, description="from problems no training document uses")
    block_size: int = Field(ge=2, description="tokens per training sequence")
    seed: int = 0


class ModelConfig(Config):
    """A Qwen3 decoder, trained from scratch; the vocabulary comes from the corpus's tokenizer."""

    name: str = execution("qwen3")
    architecture: Literal["qwen3"] = "qwen3"
    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    ffn_width: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    tied_embeddings: bool = True
    rope_base: float = Field(1e4, gt=0)
    max_positions: int = Field(ge=2)

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class Launch(Config):
    """How a training stage is spread over processes. Execution only: the same batch gives the same run."""

    processes: int = execution(1, ge=1)
    micro_batch: int = execution(16, ge=1, description="sequences per process and forward pass")
    zero_stage: Literal[0, 1, 2, 3] = execution(0)
    gradient_checkpointing: bool = execution(False)
    threads: int = execution(1, ge=1, description="CPU threads per process")
    save_steps: int = execution(100, ge=1)
    log_steps: int = execution(10, ge=1)

    def identity(self) -> dict[str, Any]:
        return {}

    @model_validator(mode="after")
    def _saves_fall_on_logs(self) -> Launch:
        if self.save_steps % self.log_steps:
            raise ValueError(
                f"save_steps is {self.save_steps}; it must be a multiple of log_steps ({self.log_steps}), so that a resumed run logs "
                "the same averages as an uninterrupted one"
            )
        return self

    def check_dtype(self, dtype: Dtype) -> None:
        if dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "dtype bfloat16 needs launch.zero_stage >= 1: at stage 0 there are no float32 weights to sum small updates in"
            )


class AdamWConfig(Config):
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int = Field(0, ge=0, description="last steps, over which the rate falls linearly to final_ratio")
    final_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)


class PretrainConfig(Config):
    """Stage one: tokens consumed = steps x global_batch x the corpus's block_size."""

    steps: int = Field(ge=1)
    global_batch: int = Field(ge=1, description="blocks per optimizer step, over all processes")
    optimizer: AdamWConfig
    dtype: Dtype = "float32"
    head_k: int = execution(5, ge=1, description="size of the head whose mass is logged")
    launch: Launch = Launch()
    adopted: str | None = Field(
        None,
        pattern="^sha256:[0-9a-f]{64}$",
        description="digest of a checkpoint that `priorlab adopt` brought in, in place of training one",
    )

    def identity(self) -> dict[str, Any]:
        kept = super().identity()
        if self.adopted is None:
            del kept["adopted"]
        return kept

    @model_validator(mode="after")
    def _batch_divides(self) -> PretrainConfig:
        one_pass = self.launch.processes * self.launch.micro_batch
        if self.global_batch % one_pass:
            raise ValueError(
                f"global_batch is {self.global_batch}; it must be a multiple of processes x micro_batch = "
                f"{self.launch.processes} x {self.launch.micro_batch} = {one_pass}"
            )
        self.launch.check_dtype(self.dtype)
        if self.optimizer.warmup_steps + self.optimizer.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps ({self.optimizer.warmup_steps}) + decay_steps ({self.optimizer.decay_steps}) exceed steps ({self.steps})"
            )
        return self


class Verification(Config):
    """Limits of the worker processes that verify responses, for the stages that score them."""

    verify_seconds: float = identity_since(5.0, gt=0, description="limit on verifying one response")
    verify_memory_mib: int = identity_since(1024, ge=64, description="limit on a worker's memory beyond what its task takes to load")
    max_verify_failures: float = execution(
        0.01, ge=0, lt=1, description="share of responses that may exceed a limit or fail before the stage stops"
    )
    verify_workers: int = execution(1, ge=1)


class RLConfig(Verification):
    """Stage two: on-policy GRPO without a KL term, rewards from the task's verifier."""

    name: str = execution("rl")
    steps: int = Field(ge=1, description="optimizer steps")
    problems: int = Field(ge=1, description="distinct training problems")
    prompts_per_step: int = Field(ge=1, description="problems per batch of rollouts")
    samples_per_prompt: int = Field(16, ge=2)
    temperature: float = Field(1.0, gt=0)
    max_response_tokens: int = Field(ge=1)
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    scale_rewards: Literal["group", "batch", "none"] = "group"
    sampling_rounds: int = Field(
        1, ge=1, description="dynamic sampling: rounds in which groups of equal rewards are replaced; 1 keeps every group"
    )
    updates_per_rollout: int = Field(1, ge=1, description="optimizer steps on each batch of rollouts; clipping acts from the second on")
    mask_truncated: bool = Field(False, description="leave responses cut at max_response_tokens out of the loss")
    preflight_problems: int = Field(32, ge=1, description="problems sampled before the first update, to see that rewards differ at all")
    optimizer: AdamWConfig
    dtype: Dtype = "float32"
    max_logprob_mismatch: float = execution(
        1e-3, gt=0, description="largest allowed |log-prob of the rollout engine - of the trainer| of a sampled token"
    )
    kv_cache_gib: int = execution(1, ge=1, description="rollout engine's cache on CPU")
    gpu_memory_share: float = execution(0.4, gt=0, lt=1, description="of each GPU, for the rollout engine")
    launch: Launch = Launch()

    def identity(self) -> dict[str, Any]:
        """Each process seeds its own sampling, so their number decides which responses are drawn."""
        return super().identity() | {"processes": self.launch.processes}

    @model_validator(mode="after")
    def _batch_divides(self) -> RLConfig:
        batch = self.prompts_per_step * self.samples_per_prompt
        one_pass = self.launch.processes * self.launch.micro_batch
        divisor = one_pass * self.updates_per_rollout
        if batch % divisor:
            raise ValueError(
                f"prompts_per_step x samples_per_prompt is {batch}; it must be a multiple of processes x micro_batch x "
                f"updates_per_rollout = {self.launch.processes} x {self.launch.micro_batch} x {self.updates_per_rollout} = {divisor}"
            )
        if self.prompts_per_step % self.launch.processes:
            raise ValueError(
                f"prompts_per_step is {self.prompts_per_step}; it must be a multiple of launch.processes "
                f"({self.launch.processes}), so that each group is sampled by one process"
            )
        for name, number in (("steps", self.steps), ("launch.save_steps", self.launch.save_steps)):
            if number % self.updates_per_rollout:
                raise ValueError(f"{name} is {number}; it must be a multiple of updates_per_rollout ({self.updates_per_rollout})")
        self.launch.check_dtype(self.dtype)
        if self.problems < self.prompts_per_step:
            raise ValueError(f"problems ({self.problems}) must be at least prompts_per_step ({self.prompts_per_step})")
        return self


class EvaluateConfig(Verification):
    """The frozen protocol, the same before and after RL."""

    name: str = execution("evaluate")
    problems: int = Field(ge=1)
    samples: int = Field(ge=1, description="responses per problem; pass@k is known up to this k")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_response_tokens: int = Field(ge=1)
    dtype: Dtype = "float32"
    heldout_blocks: int = Field(ge=1, description="blocks of held-out text for perplexity and entropy")
    head_k: int = Field(5, ge=1, description="size of the head whose mass is reported, the same for all priors")
    seed: int = 0
    verify_seconds: float = Field(5.0, gt=0, description="limit on verifying one response")
    kv_cache_gib: int = execution(1, ge=1, description="engine's cache on CPU")
    gpu_memory_share: float = execution(0.8, gt=0, lt=1)
    threads: int = execution(1, ge=1)


class TrackingConfig(Config):
    """Weights & Biases. `auto` is online when a key is found (environment or netrc), else offline."""

    mode: Literal["auto", "online", "offline", "disabled"] = execution("auto")
    project: str = execution("priorlab")
    entity: str | None = execution(None)


class Resources(Config):
    """What the Slurm job of one kind of stage asks for. Its processes (`launch.processes`) are spread evenly over its nodes."""

    nodes: int = execution(1, ge=1)
    gpus_per_process: int = execution(0, ge=0)
    cpus_per_process: int = execution(1, ge=1)
    memory_gib: float | None = execution(None, gt=0, description="per node; none given is the partition's default")
    minutes: int = execution(60, ge=1, description="time limit; a stage that has saved step checkpoints goes on in a requeued job")
    partition: str | None = execution(None)
    options: dict[str, str | int | bool] = execution({}, description="further options of sbatch, e.g. {constraint: a100}")


class ClusterConfig(Config):
    """Where stages run: as processes of this machine, or as Slurm jobs. Execution only; a whole sweep has one."""

    name: str = execution("cluster")
    kind: Literal["local", "slurm"] = execution(...)
    partition: str | None = execution(None, description="of stages that name none themselves")
    options: dict[str, str | int | bool] = execution({}, description="further options of sbatch for every job, e.g. {account: mine}")
    max_jobs: int | None = execution(None, ge=1, description="how many jobs of a sweep may run at a time")
    on_interrupt: Literal["leave", "cancel"] = execution("leave", description="what Ctrl-C does with the jobs")
    wait: bool = execution(True, description="false: submit, and return at once")
    poll_seconds: float = execution(10.0, gt=0, description="between two questions to Slurm's controller")
    warning_seconds: int = execution(90, ge=1, description="before the time limit, to end the stage in order and requeue it")
    max_timeouts: int = execution(100, ge=0, description="how often a job may reach its time limit and be requeued")
    corpus: Resources = execution(Resources())
    pretrain: Resources = execution(Resources())
    rl: Resources = execution(Resources())
    evaluate: Resources = execution(Resources())

    @model_validator(mode="before")
    @classmethod
    def _chosen(cls, given: Any) -> Any:
        if isinstance(given, dict) and "kind" not in given:
            raise ValueError(f"{', '.join(given) or 'nothing'} is set, but no cluster is chosen; add cluster=slurm")
        return given

    @model_validator(mode="after")
    def _time_to_work(self) -> ClusterConfig:
        for kind in STAGE_CONFIGS:
            minutes = self.resources(kind).minutes
            if self.warning_seconds * 5 > minutes * 60:
                raise ValueError(
                    f"warning_seconds is {self.warning_seconds}, more than a fifth of {kind}.minutes ({minutes}); "
                    f"raise {kind}.minutes, or lower warning_seconds"
                )
        return self

    def resources(self, kind: str) -> Resources:
        """Of a kind of stage."""
        found = getattr(self, kind)
        assert isinstance(found, Resources)
        return found


class RecipeConfig(Config):
    """The whole pipeline of one cell."""

    name: str = execution("recipe")
    task: Task
    corpus: CorpusConfig
    model: ModelConfig
    prior: Prior
    pretrain: PretrainConfig
    rl: RLConfig | None = None
    evaluate: EvaluateConfig
    seed: int = Field(0, ge=0, lt=2**32)
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = Field(default_factory=lambda: ClusterConfig(kind="local"), json_schema_extra={"execution": True})

    @model_validator(mode="after")
    def _processes_fit_the_nodes(self) -> RecipeConfig:
        for kind in STAGE_CONFIGS:
            settings = getattr(self, kind)
            launch = getattr(settings, "launch", None)
            processes, nodes = 1 if launch is None else launch.processes, self.cluster.resources(kind).nodes
            if self.cluster.kind == "slurm" and settings is not None and processes % nodes:
                key = f"{kind}.launch.processes ({processes})" if launch is not None else f"the one process of the stage {kind}"
                raise ValueError(f"cluster.{kind}.nodes is {nodes}; {key} cannot be spread evenly over so many nodes")
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> RecipeConfig:
        if self.corpus.block_size > self.model.max_positions:
            raise ValueError(f"corpus.block_size ({self.corpus.block_size}) exceeds model.max_positions ({self.model.max_positions})")
        for name, settings in (("rl", self.rl), ("evaluate", self.evaluate)):
            prompt = self.task.max_prompt_tokens
            if settings is not None and prompt + settings.max_response_tokens > self.model.max_positions:
                raise ValueError(
                    f"{name}.max_response_tokens ({settings.max_response_tokens}) and {prompt} tokens for the prompt exceed "
                    f"model.max_positions ({self.model.max_positions}); lower task.max_prompt_tokens or max_response_tokens, "
                    "or raise model.max_positions"
                )
        return self


class CorpusStage(Config):
    """Input of the stage `corpus`: a tokenizer, training blocks and held-out blocks."""

    task: Task
    corpus: CorpusConfig


class PretrainStage(Config):
    """Input of the stage `pretrain`; parent: corpus."""

    model: ModelConfig
    prior: Prior
    pretrain: PretrainConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        """An adopted checkpoint is its files and nothing else: what it was trained with is not known here."""
        return super().identity() if self.pretrain.adopted is None else {"adopted": self.pretrain.adopted}


class RLStage(Config):
    """Input of the stage `rl`; parent: checkpoint."""

    task: Task
    rl: RLConfig
    seed: int


class EvaluateStage(Config):
    """Input of the stage `evaluate`; parents: checkpoint and corpus."""

    task: Task
    evaluate: EvaluateConfig


StageConfig = CorpusStage | PretrainStage | RLStage | EvaluateStage

STAGE_CONFIGS: dict[str, type[StageConfig]] = {
    "corpus": CorpusStage,
    "pretrain": PretrainStage,
    "rl": RLStage,
    "evaluate": EvaluateStage,
}

# Raised by hand when a change of code changes what a stage of this kind produces; code itself is not fingerprinted.
RECIPE_VERSIONS: dict[str, int] = {"corpus": 1, "pretrain": 2, "rl": 2, "evaluate": 1}
