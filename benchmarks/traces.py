"""How fast traces are read, checked, counted and written on this machine, beside what its memory allows.

    python benchmarks/traces.py [--tokens N] [--threads 2]

The best of several runs that take turns, in M choices/s: on one core in CPU seconds, so that other work on the machine
disturbs little, and on several threads in wall seconds, which it disturbs much. "of memory" is the share of the
bandwidth of a copy by the same number of threads that reading 2 bytes a choice takes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from moecast.sim import Plan, Sites, count_traffic
from moecast.threads import VARIABLE, run_parts
from moecast.topology import load_cluster
from moecast.traces import (
    NO_CHOICE,
    RoutingTrace,
    TraceMeta,
    contiguous_ranks_LE,
    iter_trace,
    read_trace,
    write_trace,
)
from moecast.traces.checks import check_choices
from moecast.traces.statistics.counter import count_trace

RUNS = 5
COPIED_BYTES = 256 << 20
PAGE_BYTES = 1 << 20
# L, E, K, ranks; what is asked for on one core of co-activation and transition; nodes of 8 ranks that count traffic.
SHAPES = {
    "L 26, E 64, K 6, 8 ranks": ((26, 64, 6, 8), 100, 4),
    "L 58, E 256, K 8, 64 ranks": ((58, 256, 8, 64), 40, 8),
}

Work = dict[str, Callable[[], object]]


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


def best_seconds(work: Work, threads: int) -> dict[str, float]:
    """Seconds of each one's best run after one that compiles: of CPU time on one thread, else by the clock."""
    os.environ[VARIABLE] = str(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(work, float("inf"))
    for run in work.values():
        run()
    for _ in range(RUNS):
        for name, run in work.items():
            start = clock()
            run()
            best[name] = min(best[name], clock() - start)
    return best


def copies(threads: int) -> Work:
    """Copy arrays far larger than the caches, one a thread."""
    pairs = [
        (np.ones(COPIED_BYTES // threads, np.uint8), np.empty(COPIED_BYTES // threads, np.uint8))
        for _ in range(threads)
    ]
    return {"copy": lambda: run_parts([partial(np.copyto, target, source) for source, target in pairs])}


def counts(trace: RoutingTrace, ranks_LE: np.ndarray) -> Work:
    """The statistics to time."""
    placed = partial(count_trace, trace, rank_of_expert_LE=ranks_LE)
    return {
        "load": lambda: count_trace(trace),
        "load, fan-out": lambda: placed(crossings=False),
        "load, fan-out, crossings": placed,
        "load, co-activation": lambda: count_trace(trace, coactivation=True),
        "load, transition": lambda: count_trace(trace, transition=True),
        "all of these": lambda: placed(coactivation=True, transition=True),
    }


def traffic(trace: RoutingTrace, nodes: int) -> Work:
    """One step whose tokens lie in turn on the ranks of so many nodes, without and with a replica for each rank."""
    cluster = load_cluster("dgx-h200", nodes=nodes)
    layers, experts, choices = trace.meta.shape_LEK
    plan = Plan.contiguous(layers=layers, experts=experts, choices=choices, ep=cluster.n_gpus)
    extra = np.random.default_rng(0).integers(0, experts, (*plan.slots_DLGP.shape[:3], 1)).astype(np.int32)
    replicated = plan.with_(slots_DLGP=np.concatenate([plan.slots_DLGP, extra], axis=3))
    token_T = np.arange(trace.n_tokens)
    home_T = np.sort(token_T % cluster.n_gpus).astype(np.int32)
    layout = Sites.of(cluster, plan)
    return {
        f"traffic{name}": partial(count_traffic, asked, layout, trace.experts_TLK, token_T, home_T)
        for name, asked in (("", plan), (", replicas", replicated))
    }


def files(trace: RoutingTrace, path: Path) -> Work:
    """Reading and writing to time; the file is in the page cache."""
    write_trace(trace, path)
    codec, data = pa.Codec("zstd"), trace.experts_TLK.tobytes()
    pages = [data[first : first + PAGE_BYTES] for first in range(0, len(data), PAGE_BYTES)]
    packed = [(codec.compress(page), len(page)) for page in pages]
    return {
        "write (zstd)": lambda: write_trace(trace, path),
        "stream": lambda: sum(batch.n_tokens for batch in iter_trace(path)),
        "read": lambda: read_trace(path),
        "of it: zstd alone, one thread": lambda: [codec.decompress(page, size) for page, size in packed],
        "of it: check ids, one thread": lambda: check_choices(trace.experts_TLK, trace.meta.experts),
        "content hash, one thread": trace.content_hash,
    }


def main() -> None:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=120_000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    counted = (1, args.threads)
    memory_Bps = {n: 2 * COPIED_BYTES / best_seconds(copies(n), n)["copy"] for n in counted}
    speeds = ", ".join(f"{n} threads {rate / 1e9:.1f} GB/s" for n, rate in memory_Bps.items())
    print(f"A copy moves: {speeds}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for index, (title, (shape, asked_of_pairs, nodes)) in enumerate(SHAPES.items()):
        asked = {"load, fan-out": ("", "300"), "traffic": ("", "180")}
        asked |= dict.fromkeys(("load, co-activation", "load, transition"), (str(asked_of_pairs), ""))
        trace, ranks_LE = skewed_trace(args.tokens if index == 0 else args.tokens // 4, *shape)
        assert (trace.experts_TLK != NO_CHOICE).all()
        with tempfile.TemporaryDirectory() as folder:
            work = files(trace, Path(folder) / "t.parquet") | counts(trace, ranks_LE) | traffic(trace, nodes)
            seconds = {n: best_seconds(work, n) for n in counted}
        table = Table(title=f"{title}: M choices/s")
        table.add_column("")
        for n in counted:
            for column in (f"{n} core, CPU" if n == 1 else f"{n} threads, wall", "of memory", "asked"):
                table.add_column(column, justify="right")
        for name in work:
            cells = []
            for place, n in enumerate(counted):
                rate = trace.experts_TLK.size / seconds[n][name]
                cells += [f"{rate / 1e6:.0f}", f"{2 * rate / memory_Bps[n]:.0%}", asked.get(name, ("", ""))[place]]
            table.add_row(name, *cells)
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
