"""Exploration at inference: k of the n samples, picked for diversity, against k random ones (arXiv 2510.11686, section 3).

Features come from the evaluated checkpoint itself. Every metric has one value per problem, on the same samples as pass@k, so the
difference from random choice is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.evaluation import SelectionConfig
from stages.evaluate.metrics import doubling_ks, pass_at_k, samples_to_correct
from stages.evaluate.sample import Sample
from stages.novelty import elliptical_order, frozen_model, response_features, sparse_projection


def picking_orders(
    checkpoint: Path,
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Sample]],
    config: SelectionConfig,
    seed: int,
    dtype: torch.dtype,
) -> list[list[int]]:
    """Per problem, its samples' indices in the order the elliptical rule picks them; `prompts` are token ids."""
    model = frozen_model(checkpoint, dtype)
    projection = sparse_projection(model.config.hidden_size, config.projection, [seed])
    orders = []
    for prompt, group in zip(prompts, groups, strict=True):
        features = response_features(model, [prompt] * len(group), [sample.tokens for sample in group]) @ projection
        orders.append(elliptical_order(features, config.ridge).tolist())
    return orders


def selection_metrics(correct: NDArray[np.bool_], orders: Sequence[Sequence[int]]) -> dict[str, dict[str, list[float]]]:
    """metric -> k -> values, for `correct` shaped (problems, samples).

    `selected_pass@k`: a correct sample is among the first k picked. `selected_gain@k`: that minus pass@k, i.e. random choice.
    `samples_to_correct` (random) and `selected_samples_to_correct`: rank of the first correct sample; n + 1 where there is none.
    """
    n = correct.shape[1]
    ordered = np.take_along_axis(correct, np.asarray(orders), axis=1)
    place = np.where(ordered.any(axis=1), ordered.argmax(axis=1) + 1, n + 1)
    counts = correct.sum(axis=1)
    found = {k: (place <= k).astype(np.float64) for k in doubling_ks(n)}
    return {
        "selected_pass@k": {str(k): values.tolist() for k, values in found.items()},
        "selected_gain@k": {str(k): (values - pass_at_k(counts, n, k)).tolist() for k, values in found.items()},
        "samples_to_correct": {str(n): samples_to_correct(counts, n).tolist()},
        "selected_samples_to_correct": {str(n): place.astype(np.float64).tolist()},
    }
