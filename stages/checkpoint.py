"""Checkpoints between stages (HF folders) and checkpoints within one (resume)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from pipeline.config.training import Launch
from pipeline.errors import PriorlabError
from pipeline.store import read_json, write_json_atomically

_COMPLETE = "complete"
_STEP = re.compile(r"checkpoint-(\d+)")


class MarkComplete(TrainerCallback):
    """Marks a step checkpoint once all of it is written: Trainer saves file by file, and a kill may fall in between.

    The mark says how many processes and which ZeRO stage wrote it. It also makes Trainer log the last step, whatever log_steps is.
    """

    def __init__(self, launch: Launch) -> None:
        self.layout = _layout(launch)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.global_step == state.max_steps:
            control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.is_world_process_zero:
            write_json_atomically(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE, self.layout)


def last_complete(folder: Path, launch: Launch, *, remove_others: bool) -> Path | None:
    """The newest complete step checkpoint. `remove_others` deletes what a kill left half-written.

    Raises `PriorlabError` if it was written by another number of processes or ZeRO stage: its optimizer state is split accordingly.
    """
    found = {path: _STEP.fullmatch(path.name) for path in folder.glob("checkpoint-*") if path.is_dir()}
    steps = {int(match[1]): path for path, match in found.items() if match}
    for step in sorted(steps, reverse=True):
        written_by = read_json(steps[step] / _COMPLETE)
        if written_by is None:
            if remove_others:
                shutil.rmtree(steps[step])
            continue
        if written_by != _layout(launch):
            raise PriorlabError(
                f"{steps[step]} was written with {written_by}, this run has {_layout(launch)}; continue with those values of "
                f"launch, or start over with `priorlab stage {folder.parent.name} --force`"
            )
        return steps[step]
    return None


def _layout(launch: Launch) -> dict[str, int]:
    return {"processes": launch.processes, "zero_stage": launch.zero_stage}


def export_finished(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Export from the last step's checkpoint: a run that was killed after it and before its record has nothing left to train."""
    AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def save_export(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Model and tokenizer as a HF folder, whatever the ZeRO stage. Every rank must call it; one writes."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.args.should_save:
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)  # DeepSpeed's copy unties it; the embedding is the one that counts
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def verify_export(folder: Path) -> None:
    """Raises `PriorlabError` unless config, weights and tokenizer belong together: names, shapes, tied weights, vocabulary."""
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # under ZeRO-3 from_config would partition, which all ranks must do together
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise PriorlabError(f"export {folder} does not match its config in {', '.join(wrong[:5])}")
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    if vocabulary > config.vocab_size:
        raise PriorlabError(f"export {folder}: the tokenizer has {vocabulary} tokens, the model {config.vocab_size}")
