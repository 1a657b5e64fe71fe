"""Accelerators: peak arithmetic, memory and links from data sheets, and how a cluster connects them."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.base import Dtype
from pipeline.errors import PriorlabError


@dataclass(frozen=True)
class Device:
    """From the data sheets of the vendor and of its eight-device servers; docs/costs.md names them."""

    flops: float
    """Peak dense bf16 FLOP/s."""
    memory: float
    """Bytes."""
    link: float
    """Bytes per second that a device can send to others of its node, in one direction."""
    network: float
    """Bytes per second that a device can send to other nodes: its share of the node's network adapters."""
    bandwidth: float
    """Bytes per second that it reads from its memory."""


DEVICES = {
    "a100-40": Device(312e12, 40e9, 300e9, 25e9, 1.555e12),
    "a100": Device(312e12, 80e9, 300e9, 25e9, 2.039e12),
    "h100": Device(989e12, 80e9, 450e9, 50e9, 3.35e12),
    "h200": Device(989e12, 141e9, 450e9, 50e9, 4.8e12),
    "b200": Device(2250e12, 180e9, 900e9, 50e9, 8e12),
    "mi300x": Device(1307e12, 192e9, 448e9, 50e9, 5.3e12),
    "rtx4090": Device(165e12, 24e9, 32e9, 1.25e9, 1.008e12),
    "l40s": Device(362e12, 48e9, 32e9, 12.5e9, 0.864e12),
}


def known_device(name: str) -> Device:
    """Raises `PriorlabError` if the table lacks it."""
    if name not in DEVICES:
        raise PriorlabError(f"unknown device {name!r}; the table has {', '.join(DEVICES)}")
    return DEVICES[name]


def bytes_of(dtype: Dtype) -> int:
    """Of one number."""
    return 4 if dtype == "float32" else 2
