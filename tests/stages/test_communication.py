"""Bytes that `plan --costs` predicts are those that processes of the real stage send, collective by collective."""

from pathlib import Path

import pytest

from pipeline.store.folders import Home
from scripts.benchmarks.communication import Way, predicted_and_counted


@pytest.mark.parametrize("way", [Way(2, 2), Way(3, 2, checkpointing=True), Way(3, 2, node=2, processes=4)], ids=str)
def test_predicted_bytes_are_sent(way: Way, tmp_path: Path) -> None:
    found = predicted_and_counted(way, Home(tmp_path))
    assert len(found) == 2
    for collective, (predicted, counted) in found.items():
        assert counted == pytest.approx(predicted, rel=0.05), collective
