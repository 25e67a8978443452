"""A trace of 200 million tokens, 8 layers of 64 experts, top 8: made, summarised in a process of its own, thrown away.

    python benchmarks/scale.py --tokens 200_000_000 [--folder F] [--quick]

Without --tokens it is 20 million. Before it come a tenth and a hundredth of it, to show that memory does not grow with
the trace. The routing is drawn once for a block of sequences, with popular experts and topics; the blocks of the trace
hold these sequences in ever new order. Making it takes minutes and about 1 byte per choice of disk (13 GB for 200
million tokens). Memory is the summarising process's highest resident set, as the kernel reports it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from moecast.threads import thread_count
from moecast.traces import PHASES, RoutingTrace, TraceMeta, TraceWriter

LAYERS, EXPERTS, CHOICES, RANKS = 8, 64, 8, 8
TOPICS = ("law", "code", "prose", "mathematics")
LENGTH, SEQUENCES = 256, 512
LIMIT_BYTES = 2 << 30


def main() -> None:
    """Print two lines for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument(
        "--folder", type=Path, help="where the trace is made for a while", default=tempfile.gettempdir()
    )
    parser.add_argument("--quick", action="store_true", help="count load, balance, fan-out and crossings only")
    args = parser.parse_args()
    print(f"{thread_count()} threads on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for tokens in (args.tokens // 100, args.tokens // 10, args.tokens):
        folder = Path(tempfile.mkdtemp(prefix="scale-", dir=args.folder))
        try:
            report(tokens, folder / "trace", (["--quick"],) if args.quick else (["--quick"], []))
        finally:
            shutil.rmtree(folder)


def report(tokens: int, path: Path, ways: Sequence[list[str]]) -> None:
    """Make a trace, summarise it with these options, print what that took."""
    choices = tokens * LAYERS * CHOICES
    start = time.perf_counter()
    write(tokens, path)
    made_s = time.perf_counter() - start
    file_bytes = sum(shard.stat().st_size for shard in path.iterdir())
    print(f"{tokens / 1e6:5.0f} M tokens, {file_bytes / 1e9:5.2f} GB, made in {made_s:4.0f} s", flush=True)
    for extra in ways:
        wall_s, cpu_s, rss_bytes, stats = summarised(path, extra)
        assert stats["tokens"] == tokens
        print(
            f"    stats {' '.join(extra):7} {wall_s:6.1f} s, {cpu_s:6.1f} s of CPU: {choices / wall_s / 1e6:4.0f} M"
            f" choices/s, {choices / cpu_s / 1e6:4.0f} M a CPU second; {rss_bytes / 2**20:.0f} MiB resident"
            f" ({'below' if rss_bytes < LIMIT_BYTES else 'ABOVE'} {LIMIT_BYTES >> 20})",
            flush=True,
        )


def write(tokens: int, path: Path) -> None:
    """Stream a trace of so many tokens into a folder of shards."""
    block = drawn_block()
    rng = np.random.default_rng(1)
    with TraceWriter(path, block.meta) as writer:
        for batch in reordered(block, tokens, rng):
            writer.append(batch)


def drawn_block() -> RoutingTrace:
    """Draw the routing of 512 sequences: each layer has popular experts, each topic prefers some of its own."""
    rng = np.random.default_rng(0)
    tokens = LENGTH * SEQUENCES
    topic_T = np.repeat(rng.integers(0, len(TOPICS), SEQUENCES), LENGTH)
    experts_TLK = np.empty((tokens, LAYERS, CHOICES), np.uint16)
    for layer in range(LAYERS):
        popular_ME = rng.normal(size=EXPERTS) + rng.normal(size=(len(TOPICS), EXPERTS))
        score_TE = popular_ME[topic_T] + rng.gumbel(size=(tokens, EXPERTS))
        experts_TLK[:, layer] = np.argpartition(-score_TE, CHOICES, axis=1)[:, :CHOICES]
    return RoutingTrace(
        meta=TraceMeta(model="drawn at random", layers=LAYERS, experts=EXPERTS, choices=CHOICES),
        experts_TLK=experts_TLK,
        sequence_T=np.repeat(np.arange(SEQUENCES, dtype=np.uint32), LENGTH),
        position_T=np.tile(np.arange(LENGTH, dtype=np.uint32), SEQUENCES),
        phase_T=np.full(tokens, PHASES.index("prefill"), np.uint8),
        topics=TOPICS,
        topic_T=topic_T.astype(np.int16),
        token_id_T=np.minimum(rng.zipf(1.3, tokens), 32_000).astype(np.int32),
    )


def reordered(block: RoutingTrace, tokens: int, rng: np.random.Generator) -> Iterator[RoutingTrace]:
    """Yield blocks of the same sequences in new orders, numbered on, until there are enough tokens."""
    place_T = np.arange(LENGTH)
    for first in range(0, tokens, block.n_tokens):
        index_T = (rng.permutation(SEQUENCES)[:, None] * LENGTH + place_T).ravel()[: tokens - first]
        batch = block.select(index_T)
        sequence_T = (first // LENGTH + np.arange(len(index_T)) // LENGTH).astype(np.uint32)
        yield RoutingTrace(meta=block.meta, topics=TOPICS, **batch.columns() | {"sequence_T": sequence_T})


def summarised(path: Path, extra: list[str]) -> tuple[float, float, int, dict[str, float]]:
    """Run `moecast trace stats`; wall and CPU seconds, the highest resident set, what it printed."""
    command = [sys.executable, "-m", "moecast", "trace", "stats", str(path), "--ranks", str(RANKS), "--json", *extra]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{' '.join(command)} failed")
        out.seek(0)
        return wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, json.loads(out.read())


if __name__ == "__main__":
    main()
