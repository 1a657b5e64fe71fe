"""Draw the packages of `pipeline` and `stages` and their imports, as Mermaid: `.venv/bin/python scripts/figures/house.py`.

An arrow that follows from others is left out. CONTRIBUTING.md shows the drawing, and a test keeps it true.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = (
    {"pipeline.errors"},
    {"pipeline.store"},
    {"pipeline.config"},
    {"pipeline.experiment"},
    {"pipeline.run", "pipeline.compare", "pipeline.costs"},
    {"pipeline.tracking"},
    {"pipeline.home", "pipeline.report", "pipeline.analysis"},
    {"pipeline.cli"},
)
"""The layers, lowest first. A package imports from lower layers only."""
STAGES = (
    {"stages.device", "stages.die_with_parent", "stages.hub", "stages.objective"},
    {"stages.guard"},
    {"stages.contract"},
    {"stages.checkpoint", "stages.tasks", "stages.novelty", "stages.training"},
    {"stages.engine", "stages.corpus"},
    {"stages.evaluate", "stages.next_token", "stages.adopt"},
    {"stages.pretrain", "stages.midtrain", "stages.rl"},
    {"stages.sft"},
    {"stages.warm"},
)


def modules(package: str) -> dict[str, Path]:
    """Paths by dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports: at the top, within functions, and for type checkers."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    """`pipeline.run.slurm.queue` -> `pipeline.run`"""
    return ".".join(name.split(".")[:2])


def arrows(package: str) -> dict[str, set[str]]:
    """The rooms that each room of a package imports from."""
    found: dict[str, set[str]] = {}
    for name, path in modules(package).items():
        if name != package:
            used = {room(other) for other in imported(path) if other.startswith(f"{package}.")}
            found.setdefault(room(name), set()).update(used - {room(name)})
    return found


def drawing(package: str) -> str:
    """A Mermaid flowchart, highest floor first."""
    direct = arrows(package)
    lines = ["flowchart TD"]
    for floor in reversed(PIPELINE if package == "pipeline" else STAGES):
        lines += [f'    {name.partition(".")[2]}["{_title(name)}"]' for name in sorted(floor)]
    for name in sorted(direct):
        implied = {deeper for used in direct[name] for deeper in _below(used, direct)}
        lines += [f"    {name.partition('.')[2]} --> {used.partition('.')[2]}" for used in sorted(direct[name] - implied)]
    return "\n".join(lines)


def _below(name: str, direct: dict[str, set[str]]) -> set[str]:
    return direct.get(name, set()).union(*(_below(used, direct) for used in direct.get(name, set())))


def _title(name: str) -> str:
    """The room's name, and its docstring up to the first stop."""
    path = modules(name.partition(".")[0])[name]
    said = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    short = min((said.partition(stop)[0] for stop in (":", ". ")), key=len).rstrip(".").replace('"', "").replace("`", "")
    return f"<b>{name.partition('.')[2]}</b><br>{short}"


if __name__ == "__main__":
    for half in ("pipeline", "stages"):
        print(f"```mermaid\n{drawing(half)}\n```\n")
