"""`priorlab plan`: why a stage would run or be reused.

A stage that would run although the home has results of the same kind and slug is compared with the nearest of them, so that a forked
experiment explains itself before it costs anything.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pipeline.errors import PriorlabError
from pipeline.experiment.graph import Graph, StageNode
from pipeline.home.identity import StoredIdentities, differences, own_differences, planned_identity
from pipeline.home.status import stage_state
from pipeline.run.backends import jobs_of
from pipeline.store.files import read_json
from pipeline.store.folders import Home, StageFolder, status_of

_COMPARED = 50
"""How many of the newest results of a kind and slug are compared with the planned stage."""


def explained_plan(graph: Graph, home: Home) -> list[dict[str, Any]]:
    """One entry per stage, in running order: what it is, whether it is done, where it lives, and which cells use it; `why` (for people)
    and `drift`: the nearest older record, if any, and the fields that differ from it.
    """
    relatives, stored = _by_kind_and_slug(home), StoredIdentities(home)
    users: dict[str, list[str]] = {}
    for plan in graph.cells:
        for node in plan.stages():
            users.setdefault(node.fingerprint, []).append(plan.cell.id)
    folders = {fingerprint: node.folder(home) for fingerprint, node in graph.stages.items()}
    jobs = jobs_of(folders.values())
    entries = []
    for fingerprint, node in graph.stages.items():
        folder = folders[fingerprint]
        state = stage_state(folder, jobs.get(folder))
        drift = None if state == "done" else _nearest(node, relatives.get((node.kind, node.slug), []), stored)
        entries.append(
            {
                "stage": node.name,
                "kind": node.kind,
                "fingerprint": fingerprint,
                "state": state,
                "work": node.work,
                "cells": users[fingerprint],
                "parents": {role: parent.name for role, parent in node.parents.items()},
                "folder": str(folder.path),
                "why": _why(state, drift, folder),
                "drift": drift,
            }
        )
    return entries


def _by_kind_and_slug(home: Home) -> dict[tuple[str, str], list[StageFolder]]:
    found: dict[tuple[str, str], list[StageFolder]] = {}
    for folder in home.stages():
        if folder.record_file.exists():
            found.setdefault((folder.kind, folder.path.name.rpartition("-")[0]), []).append(folder)
    for folders in found.values():
        if len(folders) > _COMPARED:
            folders.sort(key=lambda folder: folder.record_file.stat().st_mtime)
    return found


def _nearest(node: StageNode, relatives: list[StageFolder], stored: StoredIdentities) -> dict[str, Any] | None:
    if not relatives:
        return None
    planned = planned_identity(node)
    compared = []
    for folder in relatives[-_COMPARED:]:
        with suppress(PriorlabError):  # a damaged relative explains nothing and blocks nothing
            known = stored.of(folder)
            if known.fingerprint != node.fingerprint:
                distance = len(differences(known, planned))  # through all parents; among equally near ones, the newest
                compared.append((distance, -folder.record_file.stat().st_mtime, known.name, known))
    if not compared:
        return None
    nearest = min(compared, key=lambda found: found[:3])[-1]
    return {"from": nearest.name, "fields": own_differences(nearest, planned)}


def _why(state: str, drift: dict[str, Any] | None, folder: StageFolder) -> str:
    if state == "done":
        adopted = (folder.record() or {}).get("adopted")
        if adopted:
            return f"adopted from {adopted['source']}"
        spec = read_json(folder.spec)
        return f"made in sweep {spec['sweep']}" if isinstance(spec, dict) and "sweep" in spec else ""
    if state == "running":
        return "another process runs it; this one would wait"
    if state == "failed":
        return f"failed: {status_of(folder).get('message', 'no reason recorded')}"
    if state in ("unfinished", "cancelled"):
        return "resumes from its last checkpoint" if any(folder.checkpoints.glob("*")) else "started, has no checkpoint"
    return f"not {drift['from']}: {'; '.join(drift['fields'])}" if drift else ""
