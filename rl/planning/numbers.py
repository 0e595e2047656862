"""Sizes and times in words."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes as `12.3 GiB` or `4.5 MiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def scaled(number: int) -> str:
    """A number of parameters as `106.9 B` or `1.1 M`."""
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def seconds(number: float) -> str:
    return f"{number:.2g} s" if number < 10 else f"{number:.0f} s"
