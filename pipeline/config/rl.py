"""Settings of RL: what is sampled, what is learned from it, and the validation that runs beside it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.algorithm import PER_RESPONSE, Advantage, Correction, Entropy, GroupAdvantage, Importance, Loss
from pipeline.config.base import Config, Dtype, execution, identity_since
from pipeline.config.engine import Engine
from pipeline.config.evaluation import Temperature, Verification
from pipeline.config.exploration import Exploration, NoExploration
from pipeline.config.launch import Launch
from pipeline.config.training import AdamWConfig


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


class RolloutEngine(Engine):
    """vLLM in the processes that train."""

    tensor_parallel: int = Field(
        1, ge=1, description="processes that share an engine, each with part of the weights, and sample all their prompts"
    )
    sleep: bool = execution(False, description="on GPUs: free the engine's memory while the policy is updated")


class Lengthening(Config):
    """Responses may be longer from some step on."""

    after_steps: int = Field(ge=1)
    max_response_tokens: int = Field(ge=1)


class RLConfig(Verification):
    """RL: policy gradients on groups of responses, with rewards from the task's verifier. By default on-policy GRPO."""

    name: str = execution("rl")
    start: float = execution(1.0, gt=0, le=1, description="share of pre-training after which RL starts; the stage has its step")
    steps: int = Field(ge=1, description="optimizer steps")
    problems: int = Field(ge=1, description="distinct training problems")
    rewordings: bool = identity_since(
        False, description="train on every wording the task knows (countdown: every order of the numbers)"
    )
    prompts_per_step: int = Field(ge=1, description="problems per batch of rollouts")
    samples_per_prompt: int = Field(16, ge=2)
    temperature: Temperature = Field(1.0, description="of sampling; the logged `entropy` is at this temperature")
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
        description="dynamic sampling: groups without signal are replaced until the batch is full, or until this many batches "
        "have been sampled for it; 1 keeps every group",
    )
    updates_per_rollout: int = Field(1, ge=1, description="optimizer steps on each batch of rollouts; clipping acts from the second on")
    mask_truncated: bool = Field(False, description="leave responses truncated at max_response_tokens out of the loss")
    exploration: Exploration = identity_since(NoExploration())
    preflight_problems: int = Field(32, ge=1, description="problems sampled before the first update, to check that rewards vary")
    validation: ValidationConfig | None = identity_since(None, description="evaluation while RL runs")
    export: Literal["last", "best"] = identity_since("last", description="the policy passed on; validation finds the best")
    rollouts: Literal["vllm", "transformers"] = identity_since("vllm", description="what samples responses")
    engine: RolloutEngine = identity_since(RolloutEngine())
    optimizer: AdamWConfig
    dtype: Dtype = "float32"
    max_logprob_mismatch: float | None = execution(
        None,
        gt=0,
        description="largest mean over a step's sampled tokens of |log-prob of the rollout engine - of the trainer|; one token may "
        "differ by ten times as much, in bfloat16 by a hundred times; default: 1e-4 in float32 on a CPU, .005 on a GPU, .1 in bfloat16",
    )
    kv_cache_gib: int = execution(1, ge=1, description="rollout engine's cache on CPU")
    gpu_memory_share: float = execution(0.4, gt=0, lt=1, description="of each GPU, for the rollout engine")
    launch: Launch = Launch()

    def identity(self) -> dict[str, Any]:
        """Each engine seeds its own sampling, so their number decides which responses are drawn."""
        kept = super().identity() | {"processes": self.launch.processes, "importance": {"mode": self.correction}}
        if self.correction != "none":
            kept["importance"]["cap"] = self.importance.cap
        inert = [] if self.advantage.kind in ("group", "random") else ["scale_rewards"]
        inert += [] if self.rollouts == "vllm" else ["engine"]
        inert += {"cispo": ["clip_low"], "sapo": ["clip_low", "clip_high"], "vespo": ["clip_low", "clip_high"]}.get(self.loss, [])
        kept = {key: value for key, value in kept.items() if key not in inert}
        # TRL takes these means and this quantile over the tokens of one forward pass.
        if self.loss == "bnpo" or self.entropy.acts or self.top_entropy_share < 1:
            kept["micro_batch"] = self.launch.micro_batch
        return kept

    @property
    def correction(self) -> Correction:
        """The importance correction in effect: `importance.mode` or the default for the dtype. Without an engine there is none."""
        if self.rollouts != "vllm":
            return "none"
        return self.importance.mode or ("none" if self.dtype == "float32" else "token_truncate")

    @property
    def processes_per_engine(self) -> int:
        """How many processes sample as one; 1 where each samples by itself."""
        return self.engine.tensor_parallel if self.rollouts == "vllm" else 1

    def allowed_mismatch(self, *, on_gpu: bool) -> float:
        """`max_logprob_mismatch`, or a default well above rounding.

        In float32 on a CPU, tokens differed by 1e-6 at most; on the GPU we tried, by .005. In bfloat16 a standard deviation of .05 is
        reported, with tokens that differ by 1 and more among millions: a bound on the largest would end every long run.
        """
        if self.max_logprob_mismatch is not None:
            return self.max_logprob_mismatch
        return 0.1 if self.dtype == "bfloat16" else 0.005 if on_gpu else 1e-4

    @property
    def largest_mismatch(self) -> float:
        """How many times the bound on the mean a single token may be off: rounding in bfloat16 has heavy tails."""
        return 100.0 if self.dtype == "bfloat16" else 10.0

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
        if advantage.kind == "pass_at_k" and advantage.k >= self.samples_per_prompt:
            raise ValueError(
                f"advantage.k is {advantage.k}, but a group has {self.samples_per_prompt} responses (samples_per_prompt), which leaves "
                "no two sets of k to compare; lower k"
            )
        adds_to_rewards = exploration.kind in ("representation", "distinct")
        if advantage.kind in ("negative", "pass_at_k") and adds_to_rewards:
            raise ValueError(
                f"exploration is {exploration.kind}, which adds to rewards, but advantage {advantage.kind} uses only right or wrong; "
                "choose advantage group or maxrl, or exploration none or diversity"
            )
        if advantage.kind == "random" and exploration.kind != "none":
            raise ValueError(
                f"exploration is {exploration.kind}, which depends on which responses are correct; advantage random is a control that "
                "must not, so choose exploration none"
            )
        return self

    @model_validator(mode="after")
    def _bonus_keeps_its_size(self) -> RLConfig:
        if self.entropy.acts and self.loss in PER_RESPONSE and self.sampling_budget > 1:
            raise ValueError(
                f"entropy is set, sampling_budget is {self.sampling_budget:g} and loss is {self.loss}, which is a mean over responses: "
                "slots that dynamic sampling cannot fill would scale the bonus; choose loss dapo, cispo or bnpo, or sampling_budget=1"
            )
        return self

    @model_validator(mode="after")
    def _correction_fits_the_loss(self) -> RLConfig:
        if self.loss == "vespo" and self.correction.startswith("sequence"):
            raise ValueError(
                f"importance.mode is {self.correction}, but loss vespo multiplies the token weights itself; "
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
            raise ValueError("export is 'best', but no validation finds the best; set validation.every, or export: last")
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
    def _engines_are_whole(self) -> RLConfig:
        together, processes = self.processes_per_engine, self.launch.processes
        if processes % together:
            raise ValueError(
                f"engine.tensor_parallel is {together}; it must divide launch.processes ({processes}), so that each process is part of "
                "an engine; lower it, or change launch.processes"
            )
        if together > 1 and self.validation is not None and self.validation.problems % processes:
            raise ValueError(
                f"validation.problems is {self.validation.problems}; with engine.tensor_parallel {together} it must be a multiple of "
                f"launch.processes ({processes}): the processes of an engine sample the same number of responses"
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
