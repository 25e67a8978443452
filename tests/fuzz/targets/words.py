"""Values of options that are read from text: quantities, fabrics, routing laws, shapes, topics, limits, sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from hypothesis import strategies as st

from moecast.cli.asked import parse_topics
from moecast.cli.collective import parse_sizes
from moecast.cli.place import parse_time_limit
from moecast.sim.made_routing import parse_law
from moecast.topology.fabric import parse_fabric
from moecast.traces import parse_shape
from moecast.units import parse
from tests.fuzz.mutations import mutate_text, often_mutated
from tests.fuzz.runner import Target

_READERS: dict[str, tuple[Callable[[str], object], tuple[str, ...]]] = {
    "bandwidth": (
        lambda text: parse(text, "bandwidth", field="bandwidth"),
        ("400 Gb/s", "3.2 TB/s", "50 GB/s", "1_000 Mbit/s"),
    ),
    "time": (lambda text: parse(text, "time", field="time"), ("1.5 us", "2 min", "3 ms", "1e-3 s", "7 µs")),
    "size": (lambda text: parse(text, "size", field="size"), ("80 GiB", "1 MB", "64KiB", "7 bytes")),
    "rate": (lambda text: parse(text, "rate", field="rate"), ("990 TFLOP/s", "1 PFLOPS", "1e9 FLOP/s")),
    "fabric": (
        parse_fabric,
        ("leaf-spine:2", "rail:1.5,nodes-per-leaf=2", "single-switch", "leaf-spine:2,routing=ecmp"),
    ),
    "routing": (parse_law, ("uniform", "zipf:1.2", "power-law:1.01", "gamma:0.8", "trace")),
    "shape": (parse_shape, ("58x256x8", "26x64x6", "1x2x1")),
    "topics": (parse_topics, ("law,code", "law=3,code=1", "a")),
    "time-limit": (parse_time_limit, ("60s", "2 min", "1.5h")),
    "bytes": (parse_sizes, ("64KiB,8MiB,1GiB", "1 MB")),
}


def _documents() -> st.SearchStrategy[tuple[str, str]]:
    known = [(name, text) for name, (_, examples) in _READERS.items() for text in examples]
    return st.sampled_from(known) | st.tuples(st.sampled_from(sorted(_READERS)), st.text(max_size=20))


def _write(document: tuple[str, str], rng: Random, folder: Path) -> Path:
    """The option's value lies in a file that is named after the option, as if it were one."""
    name, text = document
    path = folder / name
    path.write_text(often_mutated(text, rng, mutate_text), encoding="utf-8", errors="surrogatepass")
    return path


def _read(path: Path) -> object:
    return _READERS[path.name][0](path.read_bytes().decode("utf-8", "surrogatepass"))


TARGETS = (Target(name="option-text", documents=_documents, write=_write, read=_read),)
