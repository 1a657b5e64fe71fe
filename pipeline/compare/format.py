"""How tables and sentences write shares and gains: `.083`, `+.083`, `+.083 [+.061, +.106]`."""

from __future__ import annotations


def share(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:.2f}"


def signed(value: float) -> str:
    return ("-" if value < 0 else "+") + share(abs(value))


def with_interval(value: float, low: float, high: float) -> str:
    return f"{signed(value)} [{signed(low)}, {signed(high)}]"
