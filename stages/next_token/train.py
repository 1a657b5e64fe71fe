"""Training on packed blocks, from scratch (pre-training) or on from a checkpoint (mid-training, fine-tuning): HF Trainer + DeepSpeed.

The order of blocks depends on the seed alone. It is drawn up front and read sequentially, so a step sees the same blocks however they
are split over processes and micro-batches, and a resumed run continues exactly where the step checkpoint stands.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerControl, TrainerState

from pipeline.config.launch import Launch
from pipeline.config.prior import Prior
from pipeline.config.training import NextTokenTraining
from stages.checkpoint import export_finished, last_norm, save_export, verify_export
from stages.contract import Stage
from stages.corpus.pack import Blocks
from stages.next_token.milestones import KeepMilestones, export_milestones
from stages.next_token.normalization import Normalization
from stages.objective.family import objective_of
from stages.objective.head import LossHead, attach
from stages.objective.row_step import STATISTICS
from stages.training.balancing import ExpertBalance, routers_of
from stages.training.deepspeed_internals import whole_size
from stages.training.gradient_norms import GradientNorms
from stages.training.process import adapt, trainer_arguments
from stages.training.ranks import meet
from stages.training.resharding import AsItWas, load_universal, reshard
from stages.training.step_checkpoints import StepCheckpoints, is_split_otherwise, last_complete, seconds_until, step_of


class Packed(Protocol):
    """Blocks to train on, by number: of token ids, shaped (rows, block), or of ids and labels, shaped (rows, 2, block)."""

    block_size: int

    def __len__(self) -> int: ...

    def rows(self, numbers: list[int] | np.ndarray) -> Tensor:
        """The blocks of these numbers, int64, a row each."""
        ...


class OrderedBlocks(torch.utils.data.Dataset[Tensor]):
    """`steps x global_batch` blocks: whole passes over the corpus, each in a fresh random order."""

    def __init__(self, blocks: Packed, count: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0x0DE5])
        passes = [rng.permutation(len(blocks)) for _ in range(math.ceil(count / len(blocks)))]
        self._order = np.concatenate(passes)[:count]
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._order)

    def __getitems__(self, indices: list[int]) -> Tensor:
        """What torch's loader asks for where a dataset has it, instead of one item after the other."""
        return self._blocks.rows(self._order[indices])


def collate(rows: Tensor) -> dict[str, Tensor]:
    """Of rows as in `Packed`; without labels, every token is one."""
    ids, labels = (rows, rows) if rows.ndim == 2 else rows.unbind(1)
    return {"input_ids": ids, "labels": labels}


class FollowSchedule(TrainerCallback):
    """Before each step, gives the head the objective of that moment: a function of the step alone, so nothing of it needs saving."""

    def __init__(self, head: LossHead, prior: Prior) -> None:
        self.head = head
        self.prior = prior

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.head.objective = objective_of(self.prior.at(state.global_step / state.max_steps))


class NextTokenTrainer(Trainer):
    """Trainer that reads blocks in order and logs the head's statistics to the stage, and those of experts if there are any."""

    def __init__(
        self,
        *,
        stage: Stage,
        head: LossHead,
        experts: ExpertBalance | None,
        normalization: Normalization | None,
        prior: Prior,
        global_batch: int,
        block_size: int,
        every_token: bool,
        launch: Launch,
        **trainer: Any,
    ) -> None:
        super().__init__(**trainer)
        self.stage = stage
        self.head = head
        self.experts = experts
        self.tokens_per_step = global_batch * block_size
        self.predicted_per_step = global_batch * (block_size - 1) if every_token else None
        self.remove_callback(PrinterCallback)
        if experts is not None:
            self.add_callback(experts)  # before the one below whose mark covers its file
        if normalization is not None:
            self.add_callback(normalization)  # likewise
        self.gradient_norms = GradientNorms(self)
        self.add_callback(self.gradient_norms)
        self.add_callback(StepCheckpoints(stage, launch))
        self._scheduled = bool(prior.schedule)
        if self._scheduled:
            self.add_callback(FollowSchedule(head, prior))
        self._last_log = time.perf_counter()
        self._steps = 0  # since then, as are the tokens to predict and the time waited
        self._predicted = 0
        self._waited = 0.0

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> tuple[list[Any], int]:
        """The micro-batches of a step, and how many tokens all ranks predict in it; keeps the time that training waits here.

        Where every token of a block is predicted, that number is known. Trainer would count it and have all ranks agree: on a small
        model, two processes spent 5% of their time there. `_statistics` compares it with what the head has seen.
        """
        started = time.perf_counter()
        samples = list(itertools.islice(epoch_iterator, num_batches))
        self._waited += time.perf_counter() - started
        self._steps += 1
        predicted = self.predicted_per_step
        if predicted is None:
            own = sum((batch["labels"][:, 1:] != self.head.ignore_index).sum() for batch in samples)
            predicted = int(self.accelerator.reduce(torch.as_tensor(own, device=device), reduction="sum"))
        self._predicted += predicted
        return samples, predicted

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: Trainer walks through all modules for it at each micro-batch, and counts experts that no token passes through."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._statistics() | self.gradient_norms.take()
            if self._scheduled:  # of the last step; the averages beside them are over all steps since the last row
                logs |= {f"prior/{knob}": value for knob, value in asdict(self.head.objective).items() if isinstance(value, float)}
            step = self.state.global_step
            self.stage.log(step, **{name: value for name, value in logs.items() if name != "epoch"})
            self.stage.progress(step, self.state.max_steps, "steps", loss=logs["loss"], entropy=logs["entropy"])
        super().log(logs, start_time)

    def _statistics(self) -> dict[str, float]:
        sums = self.head.take_statistics()
        if sums is None:
            raise RuntimeError("the head saw no token since the last log")
        count, *totals = self.accelerator.reduce(sums, reduction="sum").tolist()
        expected = self._predicted
        if not math.isclose(count, expected, rel_tol=1e-3):  # a float32 sum of micro-batches is off by up to their number / 2^25
            raise RuntimeError(f"the head saw {count:.0f} tokens since the last log; the blocks hold {expected} to predict")
        now = time.perf_counter()
        elapsed, steps, waited = now - self._last_log, self._steps, self._waited
        self._last_log, self._steps, self._predicted, self._waited = now, 0, 0, 0.0
        means = {name: total / count for name, total in zip(STATISTICS, totals, strict=True)}
        tokens = self.state.global_step * self.tokens_per_step
        speed = {"tokens_per_s": steps * self.tokens_per_step / elapsed, "data_wait_share": waited / elapsed}
        balance = {} if self.experts is None else self.experts.take_statistics()
        return means | {"perplexity": float(np.exp(means["cross_entropy"])), "tokens": tokens} | balance | speed


def corpus_of(stage: Stage) -> tuple[PreTrainedTokenizerBase, Blocks]:
    """The tokenizer and the training blocks of the stage's corpus."""
    corpus = stage.parent("corpus")
    return AutoTokenizer.from_pretrained(corpus / "tokenizer", trust_remote_code=False), Blocks(corpus / "train")


def train(
    stage: Stage,
    settings: NextTokenTraining,
    prior: Prior,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Packed,
    build: Callable[[], PreTrainedModel],
) -> dict[str, Any]:
    """Run or resume the stage on these blocks; exports a checkpoint and returns the record's metrics.

    `build` makes the float32 model that training starts from, whole on every rank.

    Raises:
        DivergedError: the loss or a weight is not finite.
        Stopped: asked to end, after saving a step checkpoint.
        PriorlabError: a step checkpoint does not fit the launch, or the model cannot be exported at the prior's temperature.
    """
    launch = settings.launch
    ranks = meet(stage.rank, launch.processes)
    checkpoint = last_complete(stage.folder.checkpoints, launch, ranks, any_processes=True)
    if checkpoint is not None:
        stage.earlier_seconds = seconds_until(checkpoint)
    model = build()
    if prior.temperature != 1:
        last_norm(model)  # refuse before training what the export would
    adapt(model, launch)
    if checkpoint is not None and step_of(checkpoint) == settings.steps:
        if stage.rank == 0:
            _export(stage, settings, lambda folder: export_finished(checkpoint, tokenizer, folder, prior.temperature))
    else:
        _train(stage, settings, prior, seed, tokenizer, blocks, model, checkpoint)
    if stage.rank == 0:
        verify_export(stage.folder.export)
    last = stage.last_row()
    tokens = settings.steps * settings.global_batch * blocks.block_size
    return {
        "parameters": sum(map(whole_size, model.parameters())),
        "steps": settings.steps,
        "tokens": tokens,
        "passes_over_corpus": tokens / (len(blocks) * blocks.block_size),
        **{name: last[name] for name in ("loss", "perplexity", *STATISTICS)},
        "zero_stage": launch.zero_stage,
        "processes": launch.processes,
    }


def _train(
    stage: Stage,
    settings: NextTokenTraining,
    prior: Prior,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Packed,
    model: PreTrainedModel,
    checkpoint: Path | None,
) -> None:
    """Train to the last step, from the step checkpoint if there is one, and export."""
    launch = settings.launch
    head = attach(model, objective_of(prior.at(0.0)), settings.head_k)
    # After the model: once there are arguments, transformers would build it under zero.Init.
    arguments = trainer_arguments(
        settings.optimizer, launch, settings.dtype,
        steps=settings.steps, batch=settings.global_batch, seed=seed, folder=stage.folder.checkpoints,
    )  # fmt: skip
    resharded = checkpoint is not None and is_split_otherwise(checkpoint, launch)
    if resharded:
        arguments["deepspeed"] = load_universal(arguments["deepspeed"])
    trainer = NextTokenTrainer(
        stage=stage,
        head=head,
        experts=ExpertBalance(model, settings.expert_bias_rate, checkpoint) if routers_of(model) else None,
        normalization=Normalization(head, checkpoint) if prior.normalize else None,
        prior=prior,
        global_batch=settings.global_batch,
        block_size=blocks.block_size,
        every_token=blocks.rows([0]).ndim == 2,
        launch=launch,
        model=model,
        args=TrainingArguments(**arguments, remove_unused_columns=False, train_sampling_strategy="sequential"),
        train_dataset=OrderedBlocks(blocks, settings.steps * settings.global_batch, seed),
        data_collator=collate,
    )
    if checkpoint is not None and resharded:
        print(f"{checkpoint.name} was written by a different number of processes; its parts are being resharded", flush=True)
        reshard(checkpoint, rank=stage.rank)
        trainer.add_callback(AsItWas())

    def write(folder: Path) -> None:
        save_export(trainer, tokenizer, folder, prior.temperature)

    trainer.add_callback(KeepMilestones(stage, settings.milestones, write))
    stage.rewind_metrics(0 if checkpoint is None else step_of(checkpoint))
    with stage.guard.saving():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step != settings.steps:
        raise RuntimeError(f"trained {trainer.state.global_step} steps of {settings.steps}")
    _export(stage, settings, write)


def _export(stage: Stage, settings: NextTokenTraining, write_last: Callable[[Path], None]) -> None:
    """The last checkpoint, and the milestones beside it."""

    def write(folder: Path) -> None:
        write_last(folder)
        if stage.rank == 0:
            export_milestones(stage, settings.milestones, folder)

    stage.export(write)
