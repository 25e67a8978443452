"""Collectives beside nccl-tests: what is predicted for every published row, and every kind at every size.

`python benchmarks/collectives.py` prints both tables; no parameter is fitted here. Which rows the parameters of
`moecast.sim.collectives.protocols` and of the hardware tables were fitted on is in the column "use".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from moecast.errors import MoecastError
from moecast.sim import KINDS, find_rung, time_collective
from moecast.sim.collectives import bus_factor
from moecast.topology import load_cluster
from moecast.validate.compare import relative_error
from moecast.validate.published import SOURCES
from moecast.validate.published.questions import GroupCollective
from moecast.validate.published.row import Row

KIB, MIB, GIB = 2**10, 2**20, 2**30
SIZES = {"64 KiB": 64 * KIB, "8 MiB": 8 * MIB, "1 GiB": GIB}


def measured() -> Iterator[str]:
    """Lines of the table of published rows, then the mean errors."""
    yield "| source | what | factor | measured | predicted | bus GB/s measured | predicted | carried by | error | use |"
    yield "|---|---|---:|---:|---:|---:|---:|---|---:|---|"
    errors: dict[str, list[float]] = {"fit": [], "check": []}
    for source in SOURCES:
        for row in source.rows:
            if isinstance(row.question, GroupCollective):
                line, error = _line(source.name, row, row.question)
                errors[row.use].append(abs(error))
                yield line
    yield ""
    for use, found in errors.items():
        median = sorted(found)[len(found) // 2]
        yield f"{use}: {len(found)} rows, mean error {sum(found) / len(found):.1%}, median {median:.1%}."


def _line(source: str, row: Row, asked: GroupCollective) -> tuple[str, float]:
    taken = asked.timed(find_rung(asked.rung))
    measured_s, factor = asked.seconds_of(row.value), bus_factor(asked.operation, asked.ranks)
    error = relative_error(taken.time_s, measured_s)
    cells = (
        source, row.name, f"{factor:.4g}", f"{1e6 * measured_s:,.1f} µs", f"{1e6 * taken.time_s:,.1f} µs",
        f"{asked.size_bytes * factor / measured_s / 1e9:.1f}", f"{taken.bus_Bps / 1e9:.1f}", taken.carried_by,
        f"{error:+.1%}", row.use,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |", error


def kinds(cluster_name: str, nodes: int) -> Iterator[str]:
    """Lines of the table of every operation and kind on one cluster, by the rung ``fluid``."""
    cluster = load_cluster(cluster_name, nodes=nodes)
    yield f"| {cluster.n_gpus} GPUs of {cluster_name} | {' | '.join(f'{s}, µs (bus GB/s)' for s in SIZES)} |"
    yield f"|---|{'---:|' * len(SIZES)}"
    for operation, found in KINDS.items():
        for kind in ("nccl", *(kind.name for kind in found)):
            try:
                rows = time_collective(cluster, operation, list(SIZES.values()), kind=kind, rung=find_rung("fluid"))
            except MoecastError:  # not on these ranks
                continue
            cells = (f"{1e6 * row.time_s:,.1f} ({row.bus_Bps / 1e9:.0f})" for row in rows)
            yield f"| {operation} {kind} | {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    for line in (*measured(), "", *kinds("dgx-h100", 1), "", *kinds("dgx-h100", 4)):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
