"""What a stage will cost: floating-point operations, memory per device, hours, and space on disk. docs/costs.md derives the formulas.

Everything follows from the config and the vocabulary size; nothing is run. Each device holds one process of a stage.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from pipeline.config.base import Dtype
from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.launch import Launch
from pipeline.config.model import ModelConfig, MoEConfig
from pipeline.config.rl import RLConfig
from pipeline.config.stages import EvaluateStage, RLStage, SFTStage, StageConfig, TrainingStage
from pipeline.config.training import NextTokenTraining
from pipeline.costs.communication import Fabric, Transfer, transfers
from pipeline.costs.devices import Device, bytes_of
from pipeline.costs.sampling import Draw, Sampling

GIB = 2**30
_WHILE_ASLEEP = ("activations", "logits")
"""What an update needs and sampling does not."""


@dataclass(frozen=True)
class Utilisation:
    """Share of a device's peak that a stage reaches while it computes: assumed, not measured. Waiting for others comes on top."""

    training: float = 0.4
    sampling: float = 0.1


@dataclass(frozen=True)
class Costs:
    """Costs of one stage. `memory` is in bytes per device, by use; an engine's comes on top."""

    tokens: int
    steps: int
    training_flops: float
    sampling_flops: float
    memory: dict[str, float]
    stored: float
    """Peak bytes on disk: step checkpoints while it runs, and the export."""
    checkpoint: float = 0.0
    """Bytes of one step checkpoint."""
    transfers: tuple[Transfer, ...] = ()
    """What processes send one another, per step, besides the parts of an engine."""
    sampling: Sampling | None = None
    sleeps: bool = False
    """Whether the engine gives its memory back while the policy is updated."""

    def memory_on(self, device: Device) -> dict[str, float]:
        """`memory`, and an engine's: vLLM takes the whole of its share, and does not start if no sequence fits into its cache."""
        if self.sampling is None:
            return self.memory
        return self.memory | {
            "engine": self.sampling.weights,
            "kv cache": max(self.sampling.cache(device), self.sampling.longest),
        }

    def peak(self, device: Device) -> float:
        """Bytes per device, at the time when most is needed."""
        memory = self.memory_on(device)
        if not self.sleeps:
            return sum(memory.values())
        turns = [sum(memory[use] for use in uses) for uses in (("engine", "kv cache"), _WHILE_ASLEEP)]
        return sum(memory.values()) - min(turns)

    def left_for_engine(self, room: float) -> float:
        """Bytes per device, if all of it is to take `room`."""
        return room - sum(size for use, size in self.memory.items() if not (self.sleeps and use in _WHILE_ASLEEP))

    def fits(self, device: Device) -> bool:
        return self.peak(device) <= device.memory and (self.sampling is None or self.sampling.fits(device))

    def moved(self, device: Device) -> list[Transfer]:
        """All that processes send one another, per step."""
        sums = None if self.sampling is None else self.sampling.sums(device, self.steps)
        return [*self.transfers, *([] if sums is None else [sums])]

    @property
    def flops(self) -> float:
        return self.training_flops + self.sampling_flops

    def computing(self, fabric: Fabric, count: int, utilisation: Utilisation) -> float:
        """Hours of arithmetic on `count` devices, and in sampling of reading memory, if that takes longer."""
        peak = count * fabric.device.flops
        reading = 0.0 if self.sampling is None else self.sampling.reading(fabric.device)
        seconds = self.training_flops / utilisation.training / peak + max(self.sampling_flops / utilisation.sampling / peak, reading)
        return seconds / 3600

    def sending(self, fabric: Fabric, count: int) -> float:
        """Hours in which messages are being sent."""
        return self.steps * sum(fabric.seconds(one, count) for one in self.moved(fabric.device)) / 3600

    def waiting(self, fabric: Fabric, count: int, utilisation: Utilisation) -> float:
        """Hours of sending that do not overlap with computation. Only training's arithmetic can overlap."""
        training = self.training_flops / utilisation.training / (count * fabric.device.flops) / self.steps
        return self.steps * fabric.exposed(self.moved(fabric.device), count, training) / 3600


def forward_flops(model: ModelConfig, vocabulary: int, *, tokens: float, context: float, predicted: float) -> float:
    """FLOPs of a forward pass over `tokens` that attend to `context` each, with logits for `predicted` of them.

    Two per token and matrix parameter in use, plus attention's two products: queries with keys, and weights with values.
    """
    counts = model.parameters(vocabulary)
    attention = 4 * context * model.layers * model.heads * model.head_dim
    return tokens * (2 * (counts.active - counts.embedding) + attention) + predicted * 2 * vocabulary * model.width


def costs_of(stage: StageConfig, model: ModelConfig, vocabulary: int, prompt_tokens: int, block_size: int) -> Costs:
    """For a model and vocabulary size, prompts at their longest, and the corpus's blocks. Raises `TypeError` for a corpus."""
    match stage:
        case SFTStage():
            return training_costs(model, vocabulary, stage.settings, stage.sft.block_size)
        case TrainingStage():
            return training_costs(model, vocabulary, stage.settings, block_size)
        case RLStage():
            return rl_costs(model, vocabulary, stage.rl, prompt_tokens)
        case EvaluateStage():
            return evaluation_costs(model, vocabulary, stage.evaluate, prompt_tokens, block_size)
    raise TypeError(f"a stage of kind {stage.kind} needs no device")


def training_costs(model: ModelConfig, vocabulary: int, settings: NextTokenTraining, block_size: int) -> Costs:
    """Of pre-training, mid-training and fine-tuning: backward costs two forward passes. Activation checkpointing adds one through the
    layers, except each layer's last product, of which backward needs only the inputs.
    """
    tokens = settings.steps * settings.global_batch * block_size
    layers = forward_flops(model, vocabulary, tokens=tokens, context=block_size, predicted=0)
    output = tokens * 2 * vocabulary * model.width
    recomputed = layers - tokens * _last_products(model) if settings.launch.gradient_checkpointing else 0
    one_pass = settings.launch.micro_batch * block_size
    memory = state_memory(model, vocabulary, settings.launch, settings.dtype) | {
        "activations": activation_memory(model, settings.launch, settings.dtype, tokens=one_pass),
        "logits": fused_head_memory(model, vocabulary, settings.dtype, tokens=one_pass),
    }
    return Costs(
        tokens, settings.steps, 3 * (layers + output) + recomputed, 0.0, memory,
        stored=_stored(model, vocabulary, settings.dtype),
        checkpoint=_checkpoint(model, vocabulary, settings.dtype),
        transfers=tuple(transfers(settings.launch, model.parameters(vocabulary).total, model.layers, settings.dtype,
                                  micro_steps=settings.global_batch // (settings.launch.processes * settings.launch.micro_batch))),
    )  # fmt: skip


def _last_products(model: ModelConfig) -> float:
    """FLOPs per token of the last product of each layer."""
    dense = model.dense_layers * 2 * (model.ffn_width or 0) * model.width
    if model.moe is None:
        return dense
    return dense + (model.layers - model.dense_layers) * 2 * model.moe.shared_experts * model.moe.expert_width * model.width


def rl_costs(model: ModelConfig, vocabulary: int, settings: RLConfig, prompt: int) -> Costs:
    """An upper bound: prompts and responses have full length, and dynamic sampling spends its whole budget.

    A step samples, and trains on its samples: four forward passes' worth. Log-probs of the samples take one more where they must be
    known before the update, and those under the policy that RL starts from (`kl`) another.
    """
    scored = (settings.correction != "none" or settings.updates_per_rollout > 1) + (settings.kl > 0)
    generated = trained = steps_tokens = 0.0
    rollouts, launch, parts = settings.prompts_per_step * settings.samples_per_prompt, settings.launch, settings.processes_per_engine
    draws = []
    batches = Counter(settings.response_tokens_at(step) for step in range(0, settings.steps, settings.updates_per_rollout))
    for response, times in batches.items():
        one = forward_flops(model, vocabulary, tokens=prompt + response, context=(prompt + response) / 2, predicted=response)
        generated += times * settings.sampling_budget * rollouts * one
        full = forward_flops(model, vocabulary, tokens=prompt + response, context=prompt + response, predicted=response)
        trained += times * rollouts * full * (3 + scored + launch.gradient_checkpointing)
        steps_tokens += times * rollouts * (prompt + response)
        draws.append(Draw(times * settings.sampling_budget, rollouts // launch.processes * parts, prompt, response))
    longest = prompt + settings.longest_response
    memory = state_memory(model, vocabulary, launch, settings.dtype) | {
        "activations": activation_memory(model, launch, settings.dtype, tokens=launch.micro_batch * longest),
        "logits": tiled_head_memory(model, vocabulary, settings.dtype, tokens=launch.micro_batch * settings.longest_response),
    }
    copies = (settings.validation is not None) + (settings.kl > 0)
    total = model.parameters(vocabulary).total
    if copies:  # of the base policy, whose log-probs validation and the KL penalty need
        split = launch.processes if launch.zero_stage == 3 else 1
        memory["base"] = copies * float(total * bytes_of(settings.dtype)) / split
    if settings.exploration.kind == "representation":  # one in float32, whose hidden states it compares
        memory["base"] = memory.get("base", 0.0) + 4.0 * total
    passes = rollouts // settings.updates_per_rollout // (launch.processes * launch.micro_batch)
    of_step = transfers(launch, total, model.layers, settings.dtype, micro_steps=passes, forwards=1 + scored)
    if launch.zero_stage == 3 and launch.processes > 1:
        # An engine takes whole weights, of which each process keeps its part: once per batch of rollouts, and if it sleeps, anew for
        # each round of dynamic sampling. While nothing teaches, a round doubles what has been sampled.
        rounds = 1 + (math.ceil(math.log2(settings.sampling_budget)) if settings.engine.sleep else 0)
        of_batch = rounds / settings.updates_per_rollout
        size = total * bytes_of(settings.dtype) * of_batch
        of_step.append(Transfer("weights for rollouts", "all-gather", size, model.layers * of_batch, 0.0))
    sampling = Sampling(model, vocabulary, settings.dtype, tuple(draws), settings.gpu_memory_share, parts)
    return Costs(
        int(steps_tokens), settings.steps, trained, generated, memory,
        stored=_stored(model, vocabulary, settings.dtype),
        checkpoint=_checkpoint(model, vocabulary, settings.dtype), transfers=tuple(of_step),
        sampling=sampling, sleeps=settings.engine.sleep,
    )  # fmt: skip


def evaluation_costs(model: ModelConfig, vocabulary: int, settings: EvaluateConfig, prompt: int, block_size: int) -> Costs:
    """As if every response had full length; held-out text is read once."""
    responses = settings.problems * settings.samples * (1 + len(settings.temperatures))
    length = prompt + settings.max_response_tokens
    sampled = responses * forward_flops(
        model, vocabulary, tokens=length, context=length / 2, predicted=settings.max_response_tokens
    )  # fmt: skip
    read = settings.heldout_blocks * block_size
    scored = forward_flops(model, vocabulary, tokens=read, context=block_size, predicted=read)
    draws = (Draw(1 + len(settings.temperatures), settings.problems * settings.samples, prompt, settings.max_response_tokens),)
    sampling = Sampling(model, vocabulary, settings.dtype, draws, settings.gpu_memory_share, most=_AT_ONCE)
    return Costs(responses * length + read, 1, 0.0, sampled + scored, {}, stored=0.0, sampling=sampling)


# DeepSpeed's defaults, in elements: gradients reduced at a time, and parameters gathered at a time under ZeRO-3.
_BUCKET = 5e8
_GATHERED = 1e9


def state_memory(model: ModelConfig, vocabulary: int, launch: Launch, dtype: Dtype) -> dict[str, float]:
    """Bytes per device of training state: DeepSpeed's ZeRO with AdamW, moments and master weights in float32."""
    total, width = model.parameters(vocabulary).total, bytes_of(dtype)
    parts = launch.processes
    if launch.zero_stage == 0:
        return {"parameters": 4.0 * total, "gradients": 4.0 * total, "optimizer": 8.0 * total}
    split = {"parameters": 3, "gradients": 2}
    held = {name: total * width / (parts if launch.zero_stage >= stage else 1) for name, stage in split.items()}
    gathered = min(total, _GATHERED) * width if launch.zero_stage == 3 and parts > 1 else 0.0
    node = launch.zero.zero_hpz_partition_size
    if node is not None:
        held["parameters"] += total * width / node
    copies = {2: 1, 3: 2 if parts > 1 else 1}.get(launch.zero_stage, 0)  # stage 3 rearranges gradients to scatter them
    bucket = copies * min(total, _BUCKET) * width
    # Master weights, two moments, and float32 gradients of the partition being stepped.
    return held | {"optimizer": 16.0 * total / parts, "buffers": gathered + bucket}


def activation_memory(model: ModelConfig, launch: Launch, dtype: Dtype, *, tokens: int) -> float:
    """Bytes a forward pass over `tokens` saves for backward, without attention matrices (flash or SDPA).

    With activation checkpointing: each layer's input, plus all of one layer.
    """
    width = bytes_of(dtype)
    layers = [_layer_activations(model, width, None if at < model.dense_layers else model.moe) for at in range(model.layers)]
    ends = (8 + 2 * width) * model.width  # the last norm, float32 inside, and the head's gradient
    if launch.gradient_checkpointing:
        return tokens * (len(layers) * width * model.width + max(layers) + ends)
    return tokens * (sum(layers) + ends)


def _layer_activations(model: ModelConfig, width: int, moe: MoEConfig | None) -> float:
    """Bytes per token of one layer; norms and routers work in float32 whatever the dtype."""
    heads = (model.heads + 2 * model.kv_heads) * model.head_dim
    normed = (model.heads + model.kv_heads) * model.head_dim
    attention = (8 + 4 * width) * model.width + normed * (4 + width) + heads * width + model.heads * model.head_dim * width
    if moe is None:
        return attention + 4 * (model.ffn_width or 0) * width
    inner = 4 * moe.expert_width
    routed = moe.active_experts * ((inner + 2 * model.width) * width + 48) + moe.experts * 5  # 48: indices and weights
    copied = model.heads * model.head_dim * width + (4 * model.width if width < 4 else 0)  # attention's output; the router's input
    return attention + routed + moe.shared_experts * inner * width + copied


# The chunks of `stages.objective.fused` on a GPU; on a CPU they are smaller.
_CHUNK_BYTES = 1 << 26
_MIN_CHUNK_ROWS = 2048
_TILE = (4096, 32768)
"""Tokens and vocabulary of TRL's tiles of logits."""


def fused_head_memory(model: ModelConfig, vocabulary: int, dtype: Dtype, *, tokens: int) -> float:
    """Bytes of the fused loss: one chunk's logits, and the output layer's gradient, summed in float32 across chunks."""
    width = bytes_of(dtype)
    rows = max(_MIN_CHUNK_ROWS, _CHUNK_BYTES // (vocabulary * width))
    gradient = vocabulary * model.width * (4 if tokens > rows else width)
    return float(min(rows, tokens) * vocabulary * width + gradient)


def tiled_head_memory(model: ModelConfig, vocabulary: int, dtype: Dtype, *, tokens: int) -> float:
    """Bytes of TRL's log-probs (`trl.kernels.chunked_logprob`): a tile of logits, and float32 gradients of weight and hidden states."""
    rows, columns = _TILE
    return float(min(rows, tokens) * columns * bytes_of(dtype) + 4 * model.width * (vocabulary + tokens))


_AT_ONCE = 256
"""Most sequences that vLLM samples at once, by default on most devices. In RL, TRL has it sample a whole batch."""


def _stored(model: ModelConfig, vocabulary: int, dtype: Dtype) -> float:
    """Two step checkpoints, and the weights in the export."""
    return 2 * _checkpoint(model, vocabulary, dtype) + model.parameters(vocabulary).total * bytes_of(dtype)


def _checkpoint(model: ModelConfig, vocabulary: int, dtype: Dtype) -> float:
    """The weights twice (transformers and DeepSpeed), master weights and moments."""
    width = bytes_of(dtype)
    return float(model.parameters(vocabulary).total * (2 * width + (12 if width < 4 else 8)))
