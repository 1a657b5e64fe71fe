"""Options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="changes to the config, e.g. rl.steps=50 prior.beta=-0.1 axes.seed=[0,1,2]; values are YAML",
        show_default=False,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="stages to run at once (default: as many as fit on the GPUs, or one per core)", show_default=False),
]
Rename = Annotated[str | None, typer.Option("--name", help="store the results under this name", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]
