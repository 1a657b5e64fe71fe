"""Every command and config that README, CONTRIBUTING and docs show, fenced or indented, is one that works.

Commands of priorlab are parsed by its own command line; those that start something are planned, from stand-ins where they read a file
of the reader's. Of other programs, what can be known here is checked. A command that no check knows fails.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import typer
from typer.testing import CliRunner
from wandb.cli.cli import cli as wandb

from pipeline.cli.app import app
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe, load_sweep
from pipeline.experiment.config_files import parse_yaml
from pipeline.experiment.graph import build_graph
from scripts.benchmarks import on_gpu

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
STAND_INS = (
    "texts/a.jsonl.zst", "books/old/b.txt.gz", "tokenizers/mine/tokenizer.json", "problems/train.jsonl", "my-model/config.json",
)  # fmt: skip
"""Files that the pages take as the reader's own."""
ROOM = ["model.max_positions=4096", "pretrain.launch.processes=2", "pretrain.launch.micro_batch=8"]
"""What a recipe needs for the blocks and nodes that a page's corpus and cluster have."""
BESIDE = {
    "corpus.sources.": ["corpus=mine", *ROOM],
    "axes.corpus.sources.": ["corpus=mine", *ROOM],
    "cluster.pretrain.": ["cluster=slurm"],
    "pretrain.dtype=": ["pretrain.launch.zero_stage=1"],
    "rl.engine.tensor_parallel=": ["recipe=paper_1b"],
    "rl.updates_per_rollout=": ["rl.launch.micro_batch=128"],
    "rl.lengthen=": ["recipe=paper_1b"],
    "rl.export=": ["rl.validation.every=20"],
}
"""What the text around a setting says that it needs, or the config that it speaks of."""
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


class Shown(NamedTuple):
    page: str
    language: str
    text: str


def shown_on(page: str, text: str) -> list[Shown]:
    """Its fenced blocks, and indented ones as language "sh": what is no command stands in a fence that says so."""
    found: list[Shown] = []
    fence: str | None = None
    before = ""
    for line in text.splitlines():
        indented = fence is None and line.startswith("    ")
        if line.startswith("```"):
            fence = line[3:] if fence is None else None
            if fence is not None:
                found.append(Shown(page, fence, ""))
        elif fence is not None or (indented and before.startswith("    ")):
            found[-1] = found[-1]._replace(text=f"{found[-1].text}{line}\n")
        elif indented and not before:
            found.append(Shown(page, "sh", f"{line}\n"))
        before = line
    return found


def commands_in(block: str) -> list[str]:
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return [line.strip() for line in lines if shlex.split(line, comments=True)]


SHOWN = [one for page in PAGES for one in shown_on(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))]
COMMANDS = [(one.page, command) for one in SHOWN if one.language == "sh" for command in commands_in(one.text)]
CONFIGS = [(one.page, one.text) for one in SHOWN if one.language == "yaml"]
INLINE = [
    (str(page.relative_to(ROOT)), span)
    for page in PAGES
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE))
]
USAGES = [(page, span) for page, span in INLINE if re.match(r"(scripts/)?priorlab [a-z]", span)]
OVERRIDES = [(page, span) for page, span in INLINE if re.match(r"[a-z_]+(\.[a-z_]+)*=(?![A-Z]+$)", span) and "..." not in span]


@pytest.fixture(autouse=True)
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that a reader works in: what the pages' commands read, and each config that a page gives a place."""
    configs = {found.group(1): text for _, text in CONFIGS if (found := re.match(r"# (configs/[\w/-]+\.yaml)", text))}
    for path, text in (dict.fromkeys(STAND_INS, "{}") | configs).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRIORLAB_HOME", str(tmp_path / "runs"))


def test_no_fewer_are_collected_than_were() -> None:
    counts = {language: sum(one.language == language for one in SHOWN) for language in ("yaml", "python", "mermaid")}
    numbers = {"commands": len(COMMANDS), "usages": len(USAGES), "overrides": len(OVERRIDES), **counts}
    least = {"commands": 85, "usages": 12, "overrides": 21, "yaml": 10, "python": 5, "mermaid": 1}
    assert all(numbers[name] >= number for name, number in least.items()), numbers


def test_every_block_says_what_it_is() -> None:
    assert {one.language for one in SHOWN} <= {"sh", "yaml", "python", "text", "mermaid", "bibtex"}


def test_fenced_and_indented_commands_are_found() -> None:
    indented = "Do\n\n    scripts/test a  # one\n    scripts/test \\\n        b\n\n"
    fenced = "```sh\n# no command\nscripts/test c > d\n```\n```text\nno\n```\n"
    blocks = shown_on("page", indented + fenced)
    assert [one.language for one in blocks] == ["sh", "sh", "text"]
    assert commands_in(blocks[0].text) == ["scripts/test a  # one", "scripts/test b"]
    assert commands_in(blocks[1].text) == ["scripts/test c > d"]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_works(page: str, command: str) -> None:
    check(command)


FOUND_OUT = (AssertionError, FileNotFoundError, PriorlabError, SystemExit, click.UsageError, *typer.BadParameter.__bases__)
"""What a check raises; Typer brings a click of its own, whose `UsageError` is known here as a base."""


@pytest.mark.parametrize(
    "command",
    [
        "scripts/priorlab sweeep quickstart",
        "scripts/priorlab sweep quickstart --jbos 2",
        "scripts/priorlab sweep",
        "scripts/priorlab sweep nowhere",
        "scripts/priorlab run quickstart rl.stepps=3",
        "scripts/priorlab plan quickstart --costs --vocabulary 20 --device abacus",
        "scripts/priorlab wandb sing quickstart",
        "scripts/test tests/nowhere",
        ".venv/bin/python scripts/benchmarks/nothing.py",
        ".venv/bin/python scripts/benchmarks/loss.py --dtype float8",
        ".venv/bin/python scripts/benchmarks/loss.py --vocabulary 3",
        ".venv/bin/python scripts/benchmarks/rl.py --set rl.stepps=3",
        ".venv/bin/python scripts/figures/objective.py --help-me",
        ".venv/bin/python -m pip install lm-eval==0.0.1",
        ".venv/bin/python -m tests.pipeline.nothing",
        "uv pip compile pyproject.toml --extra tpu",
        "uv pip compile nothing.toml",
        "wandb lit",
        "export PRIORLAB_DEVISE=gpu",
        "apt install slurm",
        "git push --force",
        "rm -rf runs",
    ],
)
def test_a_command_that_does_not_work_is_found_out(command: str) -> None:
    with pytest.raises(FOUND_OUT):
        check(command)


@pytest.mark.parametrize(("page", "span"), USAGES)
def test_a_command_in_the_text_has_the_name_and_options_it_is_shown_with(page: str, span: str) -> None:
    words = span.partition("priorlab ")[2].split()
    command, _, _ = _resolved([words[0], *words[1:2]] if words[0] == "wandb" else words[:1])
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", span)) <= known


@pytest.mark.parametrize(("page", "span"), OVERRIDES)
def test_a_setting_in_the_text_is_a_valid_one(page: str, span: str) -> None:
    words = re.split(r" (?=[\w.]+=)", span)
    needed = [word for key, beside in BESIDE.items() if span.startswith(key) for word in beside]
    assert build_graph(load_sweep("quickstart", needed + words).cells()).stages


@pytest.mark.parametrize(("page", "text"), CONFIGS)
def test_a_config_is_a_valid_one(page: str, text: str) -> None:
    place = re.match(r"# configs/(\w+)/([\w-]+)\.yaml", text)
    if place is None:  # keys of a recipe
        overrides = [f"{key}={json.dumps(value)}" for key, value in parse_yaml(text).items()]
        chosen = load_recipe("quickstart", overrides)
    elif place.group(1) == "sweep":
        chosen = load_sweep(place.group(2))
    else:
        chosen = load_recipe("quickstart", [f"{place.group(1)}={place.group(2)}", *ROOM])
    assert build_graph(chosen.cells()).stages


@pytest.mark.parametrize(("page", "text"), [(one.page, one.text) for one in SHOWN if one.language == "python"])
def test_python_compiles(page: str, text: str) -> None:
    compile(text, page, "exec")


def check(command: str) -> None:
    """Fails unless `command` is one that the reader can run as it stands."""
    words = list(takewhile(lambda word: word != ">", shlex.split(command, comments=True)))
    while ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    assert words[0] in CHECKS, f"no check knows {words[0]}"
    CHECKS[words[0]](words[1:])


def _resolved(words: list[str]) -> tuple[Any, str, list[str]]:
    """The (sub)command of priorlab's that `words` name, its name, and the words that are left for it."""
    command: Any = typer.main.get_command(app)
    name, context = "priorlab", None
    while hasattr(command, "resolve_command"):
        context = command.context_class(command, info_name=name, parent=context)
        name, command, words = command.resolve_command(context, words)
    return command, name, words


def _priorlab(words: list[str]) -> None:
    command, name, rest = _resolved(words)
    given = command.make_context(name, list(rest)).params
    if name not in ("sweep", "run", "plan"):
        return
    chosen = (load_recipe if name == "run" else load_sweep)(given.get("name") or given["recipe"], given["overrides"] or [])
    assert build_graph(chosen.cells()).stages
    if name == "plan":
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0


def _lock(words: list[str]) -> None:
    assert not words
    assert (ROOT / "scripts" / "setup" / "lock").stat().st_mode & 0o111


def _on_gpu(words: list[str]) -> None:
    assert (ROOT / "scripts" / "on-gpu").stat().st_mode & 0o111
    chosen = on_gpu.arguments(words)
    assert set(chosen.only or ()) <= {part.name for part in on_gpu.parts(Path("here"), on_gpu=True)}


def _pip(words: list[str]) -> None:
    """This repository is the only thing that plain pip installs."""
    assert words == ["install", "."]


def _tests(words: list[str]) -> None:
    paths = [word for word in words if "/" in word]
    assert all((ROOT / path).exists() for path in paths)
    assert not {word for word in words if word.startswith("-")} - {"-k", "-q", "-x"}


def _python(words: list[str]) -> None:
    if words[:3] == ["-m", "pip", "install"]:
        extras = PYPROJECT["project"]["optional-dependencies"]
        assert set(words[3:]) <= {requirement for extra in extras.values() for requirement in extra}
    elif words[0] == "-m":
        assert (ROOT / f"{words[1].replace('.', '/')}.py").exists()
    else:
        given, unknown = _parser(ROOT / words[0]).parse_known_args(words[1:])
        assert not unknown
        if hasattr(given, "recipe"):
            assert list(load_recipe(given.recipe, given.set).cells())


def _parser(script: Path) -> argparse.ArgumentParser:
    """The script's own parser, made of its calls of `add_argument`: its imports would take seconds."""
    parser = argparse.ArgumentParser()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            eval(compile(ast.Expression(node), str(script), "eval"), {"parser": parser, "argparse": argparse, "Path": Path})
    return parser


def _uv(words: list[str]) -> None:
    extras = [words[number + 1] for number, word in enumerate(words) if word == "--extra"]
    extras += [extra for word in words for extra in re.findall(r"^\.\[(\w+)\]$", word)]
    assert set(extras) <= PYPROJECT["project"]["optional-dependencies"].keys()
    assert all((ROOT / word).exists() for word in words if re.search(r"\.(toml|txt|lock)$", word))


def _wandb(words: list[str]) -> None:
    assert words[0] in wandb.commands


def _export(words: list[str]) -> None:
    name = words[0].partition("=")[0]
    assert name in (ROOT / "scripts" / "setup" / "environment.sh").read_text(encoding="utf-8")


def _apt(words: list[str]) -> None:
    installed = (ROOT / ".ci" / "run").read_text(encoding="utf-8").split()
    assert words[0] == "install"
    assert set(words[1:]) <= set(installed)


def _git(words: list[str]) -> None:
    assert words == ["clone", "REPOSITORY-URL", "priorlab"]


def _cd(words: list[str]) -> None:
    assert words == ["priorlab"]


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHECKS: dict[str, Callable[[list[str]], None]] = {
    "scripts/priorlab": _priorlab, "priorlab": _priorlab, "scripts/setup/lock": _lock, "scripts/test": _tests,
    "scripts/on-gpu": _on_gpu,
    ".venv/bin/python": _python, "uv": _uv, "pip": _pip, "wandb": _wandb, "export": _export, "apt": _apt, "git": _git, "cd": _cd,
}  # fmt: skip
