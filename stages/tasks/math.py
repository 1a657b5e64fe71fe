"""Math: problems and answers from datasets, prompts from templates, answers judged by math-verify.

A problem is identified by its text. `task.evaluate` owns the split `evaluate`. A training row with the text of a held-out problem
(`task.held_out`; by default, the evaluation problems) is dropped. The rest of `task.train` is for RL, less `split_of`'s shares for
corpus and held-out text if it has worked solutions.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from math import isfinite
from typing import Any

from pipeline.config.tasks import MathSource, MathTask
from pipeline.errors import PriorlabError
from stages.tasks.answers import check_reference, judge
from stages.tasks.prompts import render_prompt
from stages.tasks.protocol import Document, Problem, Split, TooFewProblemsError, Verdict, split_of
from stages.tasks.rows import column, read_rows


@dataclass(frozen=True)
class _Row:
    problem: Problem
    solution: str | None


class Math:
    """Sources are read on first use: a verifier worker needs none, evaluation only its own."""

    def __init__(self, config: MathTask) -> None:
        self.config = config

    @cached_property
    def alphabet(self) -> str:
        training = (row.problem.prompt + (row.solution or "") for rows in self._training.values() for row in rows)
        return "".join(sorted(set().union(*map(set, [*self._kept_apart.values(), *training]))))

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        rows = self._rows(split)
        if count > len(rows):
            raise TooFewProblemsError(
                f"task {self.config.name!r} has {len(rows)} distinct problems in its {split!r} split, but {count} were asked for; "
                f"set {split}.problems={len(rows)} or less{', or the number that evaluate.sets gives it' * (split == 'evaluate')}"
            )
        shuffled = random.Random(f"math-problems-{split}-{seed}").sample(rows, len(rows))  # so that more problems begin with fewer
        return [row.problem for row in shuffled[:count]]

    def rewordings(self, problem: Problem) -> list[Problem]:
        return []

    def documents(self, split: Split, count: int, seed: int) -> Iterator[Document]:
        train = self.config.train
        if train is None or train.solution is None:
            raise PriorlabError(
                f"task {self.config.name!r} has no worked solutions to make a corpus of; name their column in "
                "task.train.solution, or pre-train on another task"
            )
        rows = self._rows(split)
        rng = random.Random(f"math-documents-{split}-{seed}")
        return (Document(row.problem.prompt, str(row.solution)) for row in (rng.choice(rows) for _ in range(count)))

    def verify(self, problem: Problem, response: str) -> Verdict:
        return judge(problem.data["answer"], response)

    def _rows(self, split: Split) -> list[_Row]:
        config = self.config
        if split == "evaluate" and config.evaluate is not None:
            return list(self._evaluation.values())
        if config.train is None:
            raise TooFewProblemsError(
                f"task {config.name!r} is for evaluation only and has no {split!r} split; give it a source to train on: "
                "task.train={hub: NAME} or task.train={file: problems.jsonl}"
            )
        rows = self._training[split]
        if not rows:
            raise TooFewProblemsError(f"task {config.name!r} has no problem in its {split!r} split; task.train needs more rows")
        return rows

    @cached_property
    def _evaluation(self) -> dict[str, _Row]:
        return {} if self.config.evaluate is None else self._load(self.config.evaluate, "task.evaluate")

    @cached_property
    def _kept_apart(self) -> dict[str, str]:
        """What training must not see, as text by identity."""
        if self.config.held_out is None:
            return {name: row.problem.prompt + (row.solution or "") for name, row in self._evaluation.items()}
        found = {}
        for number, source in enumerate(self.config.held_out):
            key = f"task.held_out.{number}"
            for place, row in read_rows(source, key):
                text = _text(column(row, source.problem, place, f"{key}.problem"), place, f"{key}.problem")
                found[_identity(text)] = render_prompt(self.config, text)
        return found

    def trained_on(self, *splits: Split) -> set[str]:
        """The identities of all problems in these splits, which training may draw."""
        return {row.problem.id for split in splits for row in self._training[split]}

    @cached_property
    def _training(self) -> dict[Split, list[_Row]]:
        splits: dict[Split, list[_Row]] = {"corpus": [], "heldout": [], "rl": [], "evaluate": []}
        for name, row in ({} if self.config.train is None else self._load(self.config.train, "task.train")).items():
            if name in self._kept_apart:
                continue
            split = split_of(name)
            if (split == "evaluate" and self.config.evaluate is not None) or (split in ("corpus", "heldout") and row.solution is None):
                split = "rl"
            splits[split].append(row)
        return splits

    def _load(self, source: MathSource, key: str) -> dict[str, _Row]:
        """Rows by identity, in source order; the first of several with the same problem counts."""
        rows: dict[str, _Row] = {}
        for place, row in read_rows(source, key):
            text = _text(column(row, source.problem, place, f"{key}.problem"), place, f"{key}.problem")
            if source.max_problem_characters is not None and len(text) > source.max_problem_characters:
                continue
            answer = _text(column(row, source.answer, place, f"{key}.answer"), place, f"{key}.answer")
            if source.answer_pattern is not None:
                match = re.search(source.answer_pattern, answer)
                if match is None:
                    raise PriorlabError(
                        f"the answer of {place} is {answer[-60:]!r}, which does not match {key}.answer_pattern = "
                        f"{source.answer_pattern!r}"
                    )
                answer = match[1].strip()
            try:
                check_reference(answer)
            except ValueError as error:
                raise PriorlabError(f"{place} has no answer to compare with in {key}.answer: {error}") from error
            solution = None
            if source.solution is not None:
                solution = _text(column(row, source.solution, place, f"{key}.solution"), place, f"{key}.solution")
            name = _identity(text)
            problem = Problem(id=name, prompt=render_prompt(self.config, text), data={"answer": answer})
            rows.setdefault(name, _Row(problem, solution))
        return rows


def _identity(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def _text(value: Any, place: str, key: str) -> str:
    parts = [_plain(part) for part in value] if isinstance(value, (list, tuple)) else [_plain(value)]
    if None in parts or not any(parts):
        raise PriorlabError(f"{place} has {value!r} where {key} points; expected text or a number")
    text = ", ".join(map(str, parts))
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise PriorlabError(f"{place} has half of a surrogate pair where {key} points, which is not text")
    return text


def _plain(value: Any) -> str | None:
    """A number without an exponent, which would be read as Euler's e; None for what is neither text nor a number."""
    if isinstance(value, (float, Decimal)):
        return f"{Decimal(repr(value)) if isinstance(value, float) else value:f}" if isfinite(value) else None
    return str(value).strip() if isinstance(value, (str, int)) else None
