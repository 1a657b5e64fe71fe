"""Responses as feature vectors, and how novel a vector is given the others (arXiv 2510.11686, sections 3 and 4).

A response's feature is the mean over its tokens of the last hidden state before the output layer, under a sparse random projection
(Li, Hastie and Church 2006). Novelty is elliptical: h' (ridge I + sum of the others' g g')^-1 h. In float64: that matrix is nearly
singular when responses repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from stages.device import has_gpu

_BATCH_TOKENS = 8192


def frozen_model(checkpoint: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A checkpoint's model without its output layer, for `response_features`."""
    device = "cuda" if has_gpu() else "cpu"
    return (
        AutoModel.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        .to(device)
        .eval()
        .requires_grad_(False)
    )


@torch.no_grad()
def response_features(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Float[Tensor, "responses width"]:
    """Mean of the last hidden state over each response's tokens; float64 on the CPU. Prompts and responses are token ids."""
    features = torch.empty(len(responses), model.config.hidden_size, dtype=torch.float64)
    order = sorted(range(len(responses)), key=lambda i: len(prompts[i]) + len(responses[i]))  # little padding
    longest = max((len(prompts[i]) + len(responses[i]) for i in order), default=1)
    rows = max(1, _BATCH_TOKENS // longest)
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        texts = [torch.tensor([*prompts[i], *responses[i]]) for i in batch]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(model.device)
        lengths = torch.tensor([len(text) for text in texts], device=model.device)
        begins = torch.tensor([len(prompts[i]) for i in batch], device=model.device)
        positions = torch.arange(ids.shape[1], device=model.device)
        present = positions < lengths[:, None]
        hidden = model(input_ids=ids, attention_mask=present.long(), use_cache=False).last_hidden_state.double()
        mine = (present & (positions >= begins[:, None])).double()
        features[batch] = (torch.einsum("rt,rtw->rw", mine, hidden) / mine.sum(dim=1, keepdim=True)).cpu()
    return features


def sparse_projection(width: int, dimensions: int, seed: Sequence[int]) -> Float[Tensor, "width dimensions"]:
    """A random matrix that preserves squared norms in expectation; one entry in sqrt(width) is not 0."""
    density = 1 / np.sqrt(width)
    rng = np.random.default_rng(list(seed))
    signs = rng.choice([-1.0, 0.0, 1.0], size=(width, dimensions), p=[density / 2, 1 - density, density / 2])
    return torch.from_numpy(signs / np.sqrt(density * dimensions))


def leverages(features: Float[Tensor, "samples dimensions"], ridge: float) -> Float[Tensor, " samples"]:
    """h' (ridge I + sum g g')^-1 h for each feature h, centred on the mean and itself among the g; between 0 and 1."""
    centred = features - features.mean(dim=0)
    covariance = ridge * torch.eye(features.shape[1], dtype=features.dtype) + centred.T @ centred
    return (centred * torch.linalg.solve(covariance, centred.T).T).sum(dim=1)


def elliptical_order(features: Float[Tensor, "samples dimensions"], ridge: float) -> Int[Tensor, " samples"]:
    """All samples, each the most novel given the earlier ones: the largest h' Lambda h, where Lambda is the inverse of ridge I +
    sum g g' over the samples picked so far. Ties go to the one sampled first. Uses no verdicts.

    Sherman-Morrison turns each pick into one subtraction; on the products of all samples, it needs no inverse.
    """
    # Lambda_0 = I / ridge. `products[i, j]` = h_i' Lambda h_j: Lambda's update for a pick p, taken between h_i and h_j.
    products = features @ features.T / ridge
    left = torch.ones(len(features), dtype=torch.bool)
    picked = []
    for _ in range(len(features)):
        newness = products.diagonal().masked_fill(~left, -torch.inf)
        pick = int(newness.argmax())
        products = products - torch.outer(products[:, pick], products[pick]) / (1 + products[pick, pick])
        left[pick] = False
        picked.append(pick)
    return torch.tensor(picked)
