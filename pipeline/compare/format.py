"""How tables and sentences write shares, gains and p values: `.083`, `+.083 [+.061, +.106]`, `p < .001`."""

from __future__ import annotations


def share(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:.2f}"


def signed(value: float) -> str:
    return ("-" if value < 0 else "+") + share(abs(value))


def with_interval(value: float, low: float, high: float) -> str:
    return f"{signed(value)} [{signed(low)}, {signed(high)}]"


def p_value(p: float) -> str:
    """`p = .032`, or `p < .001`."""
    return f"p = {share(p)}" if p >= 0.001 else "p < .001"


def short(number: float, thousand: str = "k") -> str:
    """`154k`, `125B`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, thousand)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
