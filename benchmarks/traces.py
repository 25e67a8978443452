"""How fast traces are read, checked, counted and written on this machine, beside what its memory allows.

Run it with `python benchmarks/traces.py [--tokens N]`. One core; the best of several runs, in CPU seconds, so that
other work on the machine disturbs little. "of memory" is the share of the copy bandwidth that reading 2 bytes a choice
takes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from moecast.traces import (
    NO_CHOICE,
    RoutingTrace,
    TraceMeta,
    contiguous_ranks_LE,
    iter_trace,
    read_trace,
    trace_stats,
    write_trace,
)
from moecast.traces.checks import check_choices
from moecast.traces.statistics.summary import TraceStats

RUNS = 5


def skewed_trace(tokens: int, layers: int, experts: int, choices: int, ranks: int) -> tuple[RoutingTrace, np.ndarray]:
    """Routing with popular experts, as real routing has, and the contiguous placement for it."""
    rng = np.random.default_rng(0)
    popularity_LE = rng.gumbel(size=(layers, experts)).astype(np.float32)
    ids_TLK = np.empty((tokens, layers, choices), np.uint16)
    for layer in range(layers):
        score_TE = popularity_LE[layer] + rng.gumbel(size=(tokens, experts)).astype(np.float32)
        ids_TLK[:, layer] = np.argpartition(-score_TE, choices, axis=1)[:, :choices]
    meta = TraceMeta(model="benchmark", layers=layers, experts=experts, choices=choices)
    trace = RoutingTrace(
        meta=meta,
        experts_TLK=ids_TLK,
        sequence_T=(np.arange(tokens) // 256).astype(np.uint32),
        position_T=(np.arange(tokens) % 256).astype(np.uint32),
        phase_T=np.ones(tokens, np.uint8),
        topic_T=np.full(tokens, -1, np.int16),
    )
    return trace, contiguous_ranks_LE(meta, ranks)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the best run, after one that compiles."""
    work()
    best = float("inf")
    for _ in range(RUNS):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def memory_Bps() -> float:
    """Bytes per second of a copy far larger than the caches, read and written bytes both counted."""
    source = np.ones(256 << 20, np.uint8)
    target = np.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: np.copyto(target, source))


def counted(trace: RoutingTrace, ranks_LE: np.ndarray) -> dict[str, Callable[[], TraceStats]]:
    """The statistics to time."""
    return {
        "load": lambda: trace_stats(trace),
        "load, fan-out, crossings": lambda: trace_stats(trace, rank_of_expert_LE=ranks_LE),
        "load, co-activation": lambda: trace_stats(trace, coactivation=True),
        "load, transition": lambda: trace_stats(trace, transition=True),
        "all": lambda: trace_stats(trace, rank_of_expert_LE=ranks_LE, coactivation=True, transition=True),
    }


def files(trace: RoutingTrace, path: Path) -> dict[str, Callable[[], object]]:
    """Reading and writing to time; the file is in the page cache."""
    write_trace(trace, path)
    return {
        "write (zstd)": lambda: write_trace(trace, path),
        "stream": lambda: sum(batch.n_tokens for batch in iter_trace(path)),
        "read": lambda: read_trace(path),
        "check ids": lambda: check_choices(trace.experts_TLK, trace.meta.experts),
        "content hash": trace.content_hash,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=60_000)
    tokens = parser.parse_args().tokens
    bandwidth_Bps = memory_Bps()
    shapes = {"L 26, E 64, K 6, 8 ranks": (26, 64, 6, 8), "L 58, E 256, K 8, 64 ranks": (58, 256, 8, 64)}
    table = Table(
        title=f"M choices/s on one core; a copy moves {bandwidth_Bps / 1e9:.1f} GB/s; load {os.getloadavg()[0]:.1f}"
    )
    table.add_column("")
    for shape in shapes:
        table.add_column(shape, justify="right")
        table.add_column("of memory", justify="right")
    rows: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, shape in enumerate(shapes.values()):
            trace, ranks_LE = skewed_trace(tokens if index == 0 else tokens // 4, *shape)
            assert (trace.experts_TLK != NO_CHOICE).all()
            work = {**files(trace, Path(folder) / f"{index}.parquet"), **counted(trace, ranks_LE)}
            for name, run in work.items():
                rate = trace.experts_TLK.size / seconds(run)
                rows.setdefault(name, []).extend([f"{rate / 1e6:.0f}", f"{2 * rate / bandwidth_Bps:.0%}"])
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
