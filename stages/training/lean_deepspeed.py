"""DeepSpeed's engine without work that a dense model can do without: the one place where its methods are replaced, all for speed.

On a small model they take as long as a layer. Each replacement gives the same bits as the method it stands for, and hands over to it
where it could not (experts, model parallelism); `tests/stages/test_lean_deepspeed.py` trains with both and fails if they part or if
DeepSpeed no longer calls one. Written for DeepSpeed 0.19.8; read `runtime/engine.py` and `clip_grad_norm_` again when that changes.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn
from torch.nn.utils import clip_grads_with_norm_

_clip, _reduce, _train = DeepSpeedEngine.clip_fp32_gradients, DeepSpeedEngine.buffered_allreduce_fallback, DeepSpeedEngine.train


def install() -> None:
    """Replace the methods for all engines of this process; needs WORLD_SIZE."""
    DeepSpeedEngine.clip_fp32_gradients = clip_fp32_gradients
    DeepSpeedEngine.zero_grad = zero_grad
    DeepSpeedEngine.train = train
    if os.environ["WORLD_SIZE"] == "1":
        DeepSpeedEngine.buffered_allreduce_fallback = reduce_nothing


def clip_fp32_gradients(engine: Any) -> None:
    """Clips the gradients' norm without ZeRO, as DeepSpeed's `clip_grad_norm_` does: batched, and without asking other ranks.

    DeepSpeed averages the norm over ranks because experts may differ between them; reduced gradients of a dense model are the same
    everywhere. One by one, norms and products of a 3-layer model took 2.3 ms a step, and that question another message.
    """
    if engine.has_moe_layers or engine.mpu is not None:
        _clip(engine)
        return
    norms = torch._foreach_norm([parameter.grad for parameter in _parameters(engine) if parameter.grad is not None])
    norm = torch.stack(norms).pow(2.0).sum().pow(0.5)  # not vector_norm, which rounds otherwise
    clip_grads_with_norm_(_parameters(engine), engine.gradient_clipping(), norm, foreach=True)


def zero_grad(engine: Any) -> None:
    """Drops all gradients. DeepSpeed and Trainer both ask for it after each step; walking through the modules took most of it."""
    for parameter in _parameters(engine):
        parameter.grad = None


def train(engine: Any, mode: bool = True) -> None:
    """Trainer asks for it before each micro-batch; a model that is in this mode is left alone."""
    if engine.module.training != mode:
        _train(engine, mode)


def reduce_nothing(*_: Any, **__: Any) -> None:
    """Without ZeRO, DeepSpeed packs, reduces and unpacks all gradients even among one process: 3.7% of a small model's step."""


def _parameters(engine: Any) -> list[nn.Parameter]:
    """The module's parameters, looked up once: nothing adds any after the engine is built."""
    found: list[nn.Parameter] | None = engine.__dict__.get("_lean_parameters")
    if found is None:
        found = engine.__dict__["_lean_parameters"] = list(engine.module.parameters())
    return found
