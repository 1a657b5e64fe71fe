"""Read W&B's offline run files back: LevelDB log blocks of protobuf records (W&B ships a writer, no reader)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_HEADER, _BLOCK = 7, 32 * 1024
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    id: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    """What a metric, or a pattern of metrics, is drawn against."""
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metadata of each, and under `files` what it refers to."""


def _records(path: Path) -> Iterator[Record]:
    data, position, parts = path.read_bytes(), _HEADER, b""
    while position + 7 <= len(data):
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < 7:  # a block's last bytes, too few for a header, are padding
            position += left_in_block
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_run(path: Path) -> OfflineRun:
    found = OfflineRun()
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.group, found.job_type = run.run_id, run.run_group, run.job_type
            found.name, found.project, found.tags = run.display_name, run.project, list(run.tags)
            found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "config":
            found.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "metric" and record.metric.step_metric:
            found.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "artifact" and record.artifact.type != "run_table":  # how W&B keeps tables
            files = {entry.path: entry.ref for entry in record.artifact.manifest.contents}
            found.artifacts[record.artifact.name] = json.loads(record.artifact.metadata) | {"files": files}
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_runs(home: Path) -> list[OfflineRun]:
    return [read_run(path) for path in sorted(home.rglob("*.wandb"))]
