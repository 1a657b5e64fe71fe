"""Typed configs of a recipe and its stages.

Every field is either *identity* (it decides the numbers a stage produces, and so its fingerprint) or *execution* (where and how it
runs; declared with `execution(...)`). `Config.identity()` keeps the first kind and normalises away knobs that cannot matter.
Torch-free: the stages import these types, and the planner must start in well under a second.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["float32", "bfloat16"]

MAX_PROMPT_TOKENS = 64
"""Room for a prompt beside the response; the rollout engine refuses longer ones. The tasks' prompts have up to 30 tokens."""


def execution(default: Any, **constraints: Any) -> Any:
    """A field that must not change results, hence not the fingerprint."""
    return Field(default, json_schema_extra={"execution": True}, **constraints)


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


class CountdownTask(Config):
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


Task = CountdownTask


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


class RLConfig(Config):
    """Stage two: on-policy GRPO without a KL term, rewards from the task's verifier."""

    name: str = execution("rl")
    steps: int = Field(ge=1)
    problems: int = Field(ge=1, description="distinct training problems")
    prompts_per_step: int = Field(ge=1)
    samples_per_prompt: int = Field(16, ge=2)
    temperature: float = Field(1.0, gt=0)
    max_response_tokens: int = Field(ge=1)
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    scale_rewards: Literal["group", "batch", "none"] = "group"
    optimizer: AdamWConfig
    dtype: Dtype = "float32"
    max_logprob_mismatch: float = execution(
        1e-3, gt=0, description="largest allowed |log-prob of the rollout engine - of the trainer| of a sampled token"
    )
    kv_cache_gib: int = execution(1, ge=1, description="rollout engine's cache on CPU")
    gpu_memory_share: float = execution(0.4, gt=0, lt=1, description="of each GPU, for the rollout engine")
    launch: Launch = Launch()

    @model_validator(mode="after")
    def _batch_divides(self) -> RLConfig:
        batch = self.prompts_per_step * self.samples_per_prompt
        one_pass = self.launch.processes * self.launch.micro_batch
        if batch % one_pass:
            raise ValueError(
                f"prompts_per_step x samples_per_prompt is {batch}; it must be a multiple of processes x micro_batch = "
                f"{self.launch.processes} x {self.launch.micro_batch} = {one_pass}"
            )
        self.launch.check_dtype(self.dtype)
        if self.problems < self.prompts_per_step:
            raise ValueError(f"problems ({self.problems}) must be at least prompts_per_step ({self.prompts_per_step})")
        return self


class EvaluateConfig(Config):
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
    verify_workers: int = execution(1, ge=1)
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
            if settings is not None and MAX_PROMPT_TOKENS + settings.max_response_tokens > self.model.max_positions:
                raise ValueError(
                    f"{name}.max_response_tokens ({settings.max_response_tokens}) and {MAX_PROMPT_TOKENS} tokens for the prompt exceed "
                    f"model.max_positions ({self.model.max_positions})"
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
RECIPE_VERSIONS: dict[str, int] = {"corpus": 1, "pretrain": 1, "rl": 1, "evaluate": 1}
