"""All objectives by their kind, and the one that a prior of priorlab's configs means."""

from __future__ import annotations

import dataclasses
from typing import Any

from stages.objective.coverage import Coverage
from stages.objective.deformed import Deformed
from stages.objective.entropy import Entropy
from stages.objective.focal import Focal
from stages.objective.gem import Gem
from stages.objective.protocol import Objective
from stages.objective.shaped import Shaped
from stages.objective.smoothing import Smoothing

OBJECTIVES: dict[str, type[Objective]] = {one.kind: one for one in (Shaped, Focal, Deformed, Gem, Entropy, Smoothing, Coverage)}


def objective_of(prior: Any) -> Objective:
    """The objective with the kind and the knobs of a prior (`pipeline.config.prior`), at one moment of training.

    Raises:
        ValueError: the prior changes over training, and which moment is meant is not known here.
    """
    if prior.schedule:
        raise ValueError(
            f"prior has a schedule ({len(prior.schedule)} more settings); take its setting at one moment, prior.at(share_of_tokens)"
        )
    objective = OBJECTIVES[prior.kind]
    return objective(**{knob.name: getattr(prior, knob.name) for knob in dataclasses.fields(objective)})
