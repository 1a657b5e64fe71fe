"""Settings of pre-training and RL, and how a training stage is spread over processes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.algorithm import Advantage, Correction, Entropy, GroupAdvantage, Importance, Loss
from pipeline.config.base import Config, Dtype, execution, identity_since
from pipeline.config.evaluation import Verification
from pipeline.config.exploration import Exploration, NoExploration


class ZeroOptions(Config):
    """DeepSpeed's options of ZeRO that change when and in what portions data moves, by its names; null: its default."""

    overlap_comm: bool | None = execution(None, description="reduce gradients during backward (null: at stage 3)")
    reduce_bucket_size: int | None = execution(None, ge=1, description="elements reduced in a message")
    allgather_bucket_size: int | None = execution(None, ge=1, description="elements gathered in a message, at stages 1 and 2")
    use_multi_rank_bucket_allreduce: bool | None = execution(
        None, description="false: at stages 1 and 2, reduce each part to its owner, in more and smaller messages"
    )
    stage3_prefetch_bucket_size: int | None = execution(None, ge=0, description="elements gathered ahead")
    stage3_max_live_parameters: int | None = execution(None, ge=0, description="elements held whole at a time")
    stage3_max_reuse_distance: int | None = execution(None, ge=0, description="elements until the next use up to which one stays whole")
    stage3_param_persistence_threshold: int | None = execution(None, ge=0, description="elements up to which a parameter stays whole")

    def given(self) -> dict[str, bool | int]:
        """Those that are set."""
        return {name: value for name, value in self if value is not None}


class Launch(Config):
    """How a training stage is spread over processes. Execution only: the same batch gives the same run."""

    processes: int = execution(1, ge=1)
    micro_batch: int = execution(16, ge=1, description="sequences per process and forward pass")
    zero_stage: Literal[0, 1, 2, 3] = execution(0)
    zero: ZeroOptions = execution(ZeroOptions())
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
                "dtype bfloat16 needs launch.zero_stage >= 1: stage 0 has no float32 weights to accumulate small updates in"
            )


class AdamWConfig(Config):
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int = Field(0, ge=0, description="last steps, over which the rate falls to final_ratio")
    decay: Literal["linear", "cosine"] = identity_since("linear", description="shape of the decay")
    final_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)

    def identity(self) -> dict[str, Any]:
        kept = super().identity()
        if self.decay_steps == 0:
            kept.pop("decay", None)
        return kept

    def check_steps(self, steps: int) -> None:
        """Raises `ValueError` if warmup and decay do not fit into `steps`."""
        if self.warmup_steps + self.decay_steps > steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) + decay_steps ({self.decay_steps}) exceed steps ({steps})")


class Milestones(Config):
    """Which intermediate checkpoints are kept and evaluated: evenly spaced ones, or those at given shares of the tokens."""

    count: int | None = Field(None, ge=2, description="evenly spaced, with the last")
    spacing: Literal["linear", "log"] = Field("linear", description="log: each after twice as many tokens as the one before")
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((), description="of the token budget, instead of count")

    @model_validator(mode="before")
    @classmethod
    def _list_of_shares(cls, given: Any) -> Any:
        return {"shares": given} if isinstance(given, (list, tuple)) else given

    @model_validator(mode="after")
    def _one_of_both(self) -> Milestones:
        if (self.count is None) == (not self.shares):
            raise ValueError(
                f"count is {self.count} and shares {list(self.shares)}; give one of them, e.g. {{count: 8, spacing: log}} or [0.1, 0.5]"
            )
        return self

    def steps(self, total: int) -> list[int]:
        """Optimizer steps, of `total`, after which a checkpoint is kept; without the last."""
        shares: list[float] = list(self.shares)
        if self.count is not None:
            behind = range(1, self.count)  # how many checkpoints come after
            shares = [2.0**-later if self.spacing == "log" else 1 - later / self.count for later in behind]
        return sorted({self.step_at(share, total) for share in shares} - {total})

    @staticmethod
    def step_at(share: float, total: int) -> int:
        """The optimizer step, of `total`, after which this share of the tokens has been seen."""
        return max(1, round(share * total))


class NextTokenTraining(Config):
    """Training on packed text, from scratch or not: tokens consumed = steps x global_batch x the corpus's block_size."""

    steps: int = Field(ge=1)
    global_batch: int = Field(ge=1, description="blocks per optimizer step, over all processes")
    optimizer: AdamWConfig
    dtype: Dtype = "float32"
    head_k: int = execution(5, ge=1, description="size of the head whose mass is logged")
    expert_bias_rate: float = identity_since(
        1e-3,
        ge=0,
        description="how far a step moves the bias of an expert with more or less than its share of tokens; 0: no balancing",
    )
    launch: Launch = Launch()
    evaluate_at: Milestones | None = Field(None, description="intermediate checkpoints to evaluate besides the last")

    @property
    def milestones(self) -> list[int]:
        """Steps of the intermediate checkpoints."""
        return [] if self.evaluate_at is None else self.evaluate_at.steps(self.steps)

    def identity(self) -> dict[str, Any]:
        """Intermediate checkpoints are results, however they were requested; weights do not depend on them."""
        kept = {key: value for key, value in super().identity().items() if key != "evaluate_at"}
        return kept | ({"milestones": self.milestones} if self.milestones else {})

    @model_validator(mode="after")
    def _batch_divides(self) -> NextTokenTraining:
        one_pass = self.launch.processes * self.launch.micro_batch
        if self.global_batch % one_pass:
            raise ValueError(
                f"global_batch is {self.global_batch}; it must be a multiple of processes x micro_batch = "
                f"{self.launch.processes} x {self.launch.micro_batch} = {one_pass}"
            )
        self.launch.check_dtype(self.dtype)
        self.optimizer.check_steps(self.steps)
        return self


class PretrainConfig(NextTokenTraining):
    """Stage one, from scratch."""

    adopted: str | None = identity_since(
        None,
        pattern="^sha256:[0-9a-f]{64}$",
        description="digest of a checkpoint that `priorlab adopt` brought in, instead of training one",
    )

    @model_validator(mode="after")
    def _adopted_has_one_checkpoint(self) -> PretrainConfig:
        if self.adopted is not None and self.milestones:
            raise ValueError("evaluate_at is set, but an adopted checkpoint has no intermediate ones; leave evaluate_at out")
        return self


class ValidationConfig(Config):
    """Evaluation while RL runs, on held-out problems of the RL split.

    Runs before the first step, every `every` steps, and after the last.
    """

    every: int = Field(ge=1, description="RL steps between two evaluations")
    problems: int = Field(64, ge=1)
    samples: int = Field(16, ge=1, description="responses per problem")
    best_k: int = Field(1, ge=1, description="the best policy has the highest pass@best_k; the earliest wins ties")

    @model_validator(mode="after")
    def _k_is_measured(self) -> ValidationConfig:
        if self.best_k > self.samples:
            raise ValueError(f"best_k is {self.best_k}, but only {self.samples} samples are drawn per problem; raise samples")
        return self


class Lengthening(Config):
    """Responses may be longer from some step on."""

    after_steps: int = Field(ge=1)
    max_response_tokens: int = Field(ge=1)


class RLConfig(Verification):
    """Stage two: policy gradients on groups of responses, with rewards from the task's verifier. By default on-policy GRPO."""

    name: str = execution("rl")
    start: float = execution(1.0, gt=0, le=1, description="share of pre-training after which RL starts; the stage has its step")
    steps: int = Field(ge=1, description="optimizer steps")
    problems: int = Field(ge=1, description="distinct training problems")
    rewordings: bool = identity_since(
        False, description="train on every wording the task knows (countdown: every order of the numbers)"
    )
    prompts_per_step: int = Field(ge=1, description="problems per batch of rollouts")
    samples_per_prompt: int = Field(16, ge=2)
    temperature: float = Field(1.0, gt=0, description="of sampling; the logged `entropy` is that of the distribution at it")
    max_response_tokens: int = Field(ge=1)
    lengthen: tuple[Lengthening, ...] = identity_since((), description="later response limits, by step, replacing the first")
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="what advantages of kind group and random are divided by: a standard deviation of rewards, or nothing"
    )
    loss: Loss = identity_since("dapo", description="form of the policy's loss, by TRL's name, or gspo")
    advantage: Advantage = identity_since(GroupAdvantage())
    entropy: Entropy = identity_since(Entropy())
    top_entropy_share: float = identity_since(
        1.0, gt=0, le=1, description="share of tokens, those of highest entropy, that the loss is taken over (arXiv 2506.01939)"
    )
    kl: float = identity_since(0.0, ge=0, description="weight of a KL penalty against the policy that RL starts from")
    importance: Importance = Importance()
    sampling_budget: float = Field(
        1.0,
        ge=1,
        description="dynamic sampling: groups that teach nothing are replaced until the batch is full, or until this many batches "
        "have been sampled for it; 1 keeps every group",
    )
    updates_per_rollout: int = Field(1, ge=1, description="optimizer steps on each batch of rollouts; clipping acts from the second on")
    mask_truncated: bool = Field(False, description="drop responses truncated at max_response_tokens from the loss")
    exploration: Exploration = identity_since(NoExploration())
    preflight_problems: int = Field(32, ge=1, description="problems sampled before the first update, to see that rewards vary at all")
    validation: ValidationConfig | None = identity_since(None, description="evaluation while RL runs")
    export: Literal["last", "best"] = identity_since("last", description="the policy passed on; validation finds the best")
    rollouts: Literal["vllm", "transformers"] = identity_since("vllm", description="what samples responses")
    optimizer: AdamWConfig
    dtype: Dtype = "float32"
    max_logprob_mismatch: float | None = execution(
        None,
        gt=0,
        description="largest |log-prob of the rollout engine - of the trainer| of a sampled token; "
        "default: .001 in float32 on a CPU, .05 on a GPU, 1 in bfloat16",
    )
    kv_cache_gib: int = execution(1, ge=1, description="rollout engine's cache on CPU")
    gpu_memory_share: float = execution(0.4, gt=0, lt=1, description="of each GPU, for the rollout engine")
    launch: Launch = Launch()

    def identity(self) -> dict[str, Any]:
        """Each process seeds its own sampling, so their number decides which responses are drawn."""
        kept = super().identity() | {"processes": self.launch.processes, "importance": {"mode": self.correction}}
        if self.correction != "none":
            kept["importance"]["cap"] = self.importance.cap
        inert = [] if self.advantage.kind in ("group", "random") else ["scale_rewards"]
        inert += {"cispo": ["clip_low"], "sapo": ["clip_low", "clip_high"], "vespo": ["clip_low", "clip_high"]}.get(self.loss, [])
        kept = {key: value for key, value in kept.items() if key not in inert}
        # TRL takes these means and this quantile over the tokens of one forward pass.
        if self.loss == "bnpo" or self.entropy.acts or self.top_entropy_share < 1:
            kept["micro_batch"] = self.launch.micro_batch
        return kept

    @property
    def correction(self) -> Correction:
        """The importance correction that acts: `importance.mode`, or its default for the dtype; none where there is no engine."""
        if self.rollouts != "vllm":
            return "none"
        return self.importance.mode or ("none" if self.dtype == "float32" else "token_truncate")

    def allowed_mismatch(self, *, on_gpu: bool) -> float:
        """`max_logprob_mismatch`, or a default above rounding: in float32 that was 1e-6 on a CPU and .005 on the GPU we tried."""
        if self.max_logprob_mismatch is not None:
            return self.max_logprob_mismatch
        return 1.0 if self.dtype == "bfloat16" else 0.05 if on_gpu else 1e-3

    def response_tokens_at(self, step: int) -> int:
        """The limit on a response sampled after `step` optimizer steps."""
        return next(
            (later.max_response_tokens for later in reversed(self.lengthen) if later.after_steps <= step), self.max_response_tokens
        )

    @property
    def longest_response(self) -> int:
        return max([self.max_response_tokens, *(later.max_response_tokens for later in self.lengthen)])

    @model_validator(mode="after")
    def _advantages_exist(self) -> RLConfig:
        advantage, exploration = self.advantage, self.exploration
        if advantage.kind == "pass_at_k" and advantage.k > self.samples_per_prompt:
            raise ValueError(
                f"advantage.k is {advantage.k}, but a group has {self.samples_per_prompt} responses (samples_per_prompt); lower k"
            )
        adds_to_rewards = exploration.kind in ("representation", "distinct")
        if advantage.kind in ("negative", "pass_at_k") and adds_to_rewards:
            raise ValueError(
                f"exploration is {exploration.kind}, which adds to rewards, but advantage {advantage.kind} knows right and wrong only; "
                "choose advantage group or maxrl, or exploration none or diversity"
            )
        if advantage.kind == "random" and exploration.kind != "none":
            raise ValueError(
                f"exploration is {exploration.kind}, which looks at which responses are right; beside advantage random, a control that "
                "must not, choose exploration none"
            )
        return self

    @model_validator(mode="after")
    def _correction_fits_the_loss(self) -> RLConfig:
        if self.loss == "vespo" and self.correction.startswith("sequence"):
            raise ValueError(
                f"importance.mode is {self.correction}, but loss vespo multiplies the weights of tokens by itself; "
                "choose token_truncate or token_mask"
            )
        return self

    @model_validator(mode="after")
    def _lengthening_is_in_order(self) -> RLConfig:
        steps = [later.after_steps for later in self.lengthen]
        if steps != sorted(set(steps)) or any(step >= self.steps or step % self.updates_per_rollout for step in steps):
            raise ValueError(
                f"lengthen has after_steps {steps}; they must increase, stay below steps ({self.steps}), and be multiples of "
                f"updates_per_rollout ({self.updates_per_rollout}), since responses are sampled only then"
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> RLConfig:
        if self.export == "best" and self.validation is None:
            raise ValueError("export is 'best', but nothing measures which policy is; set validation.every, or export: last")
        if self.validation is not None and self.validation.every % self.updates_per_rollout:
            raise ValueError(
                f"validation.every is {self.validation.every}; it must be a multiple of updates_per_rollout "
                f"({self.updates_per_rollout})"
            )
        if self.validation is not None and self.validation.problems < self.launch.processes:
            raise ValueError(
                f"validation.problems is {self.validation.problems}; each of the {self.launch.processes} processes needs at least one"
            )
        return self

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
        self.optimizer.check_steps(self.steps)
        self.launch.check_dtype(self.dtype)
        if self.problems < self.prompts_per_step:
            raise ValueError(f"problems ({self.problems}) must be at least prompts_per_step ({self.prompts_per_step})")
        return self
