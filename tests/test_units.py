"""Quantities: the units that are listed, and none of another dimension."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.units import format_Bps, format_bytes, parse


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("400 Gb/s", "bandwidth", 50e9),
        ("400Gbps", "bandwidth", 50e9),
        ("50 GB/s", "bandwidth", 50e9),
        ("3.35 TB/s", "bandwidth", 3.35e12),
        ("1 GiB/s", "bandwidth", 2**30),
        ("200 Gbit/s", "bandwidth", 25e9),
        ("1.5 us", "time", 1.5e-6),
        ("1.5 µs", "time", 1.5e-6),  # the micro sign
        ("1.5 μs", "time", 1.5e-6),  # the Greek letter
        ("2 min", "time", 120),
        ("1.5h", "time", 5400),
        ("80 GiB", "size", 80 * 2**30),
        ("80 GB", "size", 80e9),
        ("1_000 B", "size", 1000),
        ("990 TFLOP/s", "rate", 990e12),
        ("1e3 GFLOPS", "rate", 1e12),
    ],
)
def test_quantities(text: str, kind: str, value: float) -> None:
    assert parse(text, kind) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("400 GFLOP/s", "bandwidth"),
        ("400 GB", "bandwidth"),
        ("400 Hz", "bandwidth"),
        ("990 TB/s", "rate"),
        ("990 THz", "rate"),
        ("80 percent", "size"),
        ("80 GiB/s", "size"),
        ("1..2 GiB", "size"),
        ("1__2 GiB", "size"),
        ("1_ GiB", "size"),
        ("9**9**9 B", "size"),
        ("-1 B", "size"),
        ("1e999 B", "size"),
        ("nan B", "size"),
        ("5 m", "time"),
        ("5 ks", "time"),
        ("5", "time"),
        ("s", "time"),
        (5, "time"),
        (True, "size"),
        (None, "size"),
    ],
)
def test_what_is_refused(text: object, kind: str) -> None:
    with pytest.raises(MoecastError, match=r"such as|not negative and finite"):
        parse(text, kind, field="it")


@given(st.integers(0, 10**6), st.sampled_from(["kB/s", "MB/s", "GB/s", "TB/s"]))
def test_bandwidths_are_written_as_they_are_read(number: int, unit: str) -> None:
    value = parse(f"{number} {unit}", "bandwidth")
    assert parse(format_Bps(value), "bandwidth") == pytest.approx(value, rel=0.006)
    assert parse(format_bytes(value), "size") == pytest.approx(value, rel=0.006)
