"""The command line as a whole: every command in the order of the help, and how errors are shown."""

from __future__ import annotations

import os
import sys

import typer
from rich.text import Text

from pipeline.cli import wandb
from pipeline.cli.compare import compare, report
from pipeline.cli.home import adopt, cancel, diff, doctor, gc, logs, status
from pipeline.cli.plan import plan
from pipeline.cli.run import resume, run, stage, sweep
from pipeline.cli.terminal import errors
from pipeline.errors import PriorlabError
from pipeline.run.surroundings import forget_surroundings

app = typer.Typer(
    name="priorlab",
    help="How does the shape of the pre-trained token distribution decide what RL can learn? Pre-train models under several priors, "
    "run RL on each, and compare pass@k before and after.\n\nResults live below $PRIORLAB_HOME (default: ./runs).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (sweep, run, plan, resume, stage, doctor, report, compare, status, logs, diff, cancel, gc, adopt):
    app.command()(command)
app.add_typer(wandb.app)


def main() -> None:
    forget_surroundings()
    try:
        app()
    except PriorlabError as error:
        errors.print(Text(f"error: {error}"), soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:  # `priorlab logs ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        errors.print(Text(f"error: {error.strerror or error}{place}"), soft_wrap=True)
        sys.exit(2)
