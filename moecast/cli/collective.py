"""``moecast collective``: what a cluster's collectives give, beside the output of nccl-tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from moecast.sim import CollectiveTime
    from moecast.sim.accuracy import Grounds
    from moecast.topology import Cluster

SIZES = "64KiB,1MiB,8MiB,64MiB,256MiB,1GiB"
MOST_SIZES = 64
NOTE = (
    "Even, out of place, all ranks at once. Between nodes the links set NCCL's rate, and its "
    "proxies post a message in a microsecond; channels that do not fill cards are not modelled."
)


def collective_command(
    cluster: options.Cluster,
    operation: Annotated[
        str, typer.Option("--op", help="all-reduce, reduce-scatter, all-gather, all-to-all or send-recv.")
    ] = "all-to-all",
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="nccl: what NCCL would take for the size. Over the links alone: ring, tree, "
            "in-switch, one-shot, two-shot, direct, hierarchical, 2dh, cyclic, open, where the "
            "operation has it.",
        ),
    ] = "nccl",
    nodes: options.Nodes = None,
    fabric: options.Fabric = None,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", min=2, help="The first so many GPUs take part.", show_default="all GPUs"),
    ] = None,
    sizes: Annotated[
        str, typer.Option("--bytes", help="nccl-tests' sizes, with units: the whole buffer of a rank.")
    ] = SIZES,
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            help="The rung: bound, fluid or fluid:0.3% (within a tolerance).",
            show_default="fluid; bound beyond 64 ranks",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the hash that picks paths on ECMP fabrics.")] = 0,
    json: options.Json = False,
) -> None:
    """Time a collective by itself, as nccl-tests do: size, time, bandwidths, what carries it and what limits it.

    No model and no routing: what the links give.

    Example: moecast collective --op all-reduce --cluster dgx-h100 --nodes 4 --bytes 64KiB,8MiB,1GiB
    """
    from moecast.cli import render
    from moecast.sim import find_rung, time_collective, usual_rung
    from moecast.sim.accuracy import collective_grounds, collective_text
    from moecast.topology import load_cluster

    asked = parse_sizes(sizes)
    built = load_cluster(cluster, nodes=nodes, fabric=fabric)
    count = built.n_gpus if ranks is None else ranks
    rung = find_rung(network) if network else usual_rung(count)
    with render.progress("timing", quiet=json) as advance:
        found = time_collective(built, operation, asked, rung=rung, kind=kind, ranks=ranks, seed=seed, progress=advance)
    grounds = collective_grounds(built, operation, kind=kind, ranks=count)
    told = collective_text(grounds)
    if json:
        rows = [{**row.to_json(), "interval_s": grounds.interval_s(row.time_s)} for row in found]
        said = {"collective": operation, "kind": kind, "cluster": built.name, "ranks": count, "network": rung.name}
        render.echo_json({**said, "rows": rows, "notes": [*built.notes, NOTE, told], "rests_on": grounds.to_json()})
    else:
        _show(built, f"{operation} over {count} GPUs", rung.name, found, grounds)
        render.console().print(told, markup=False)


def parse_sizes(text: str) -> list[float]:
    """Read ``64KiB,8MiB,1GiB`` as bytes.

    Raises
    ------
    MoecastError
        A size without a unit, of nothing, or too many of them.
    """
    from moecast.errors import MoecastError
    from moecast.units import parse

    parts = [part.strip() for part in text.split(",")]
    if len(parts) > MOST_SIZES:
        raise MoecastError(f"at most {MOST_SIZES} sizes", field="--bytes", value=text)
    sizes = [parse(part, "size", field="--bytes") for part in parts]
    if min(sizes) <= 0:
        raise MoecastError("a size is more than nothing, such as 8MiB", field="--bytes", value=text)
    return sizes


def _show(cluster: Cluster, what: str, network: str, rows: list[CollectiveTime], grounds: Grounds) -> None:
    from rich.markup import escape
    from rich.table import Table

    from moecast.cli import render
    from moecast.units import format_bytes, format_s

    console = render.console()
    for note in cluster.notes:
        console.print(note, style="yellow", markup=False)
    title = f"{what} of {escape(cluster.name)}, rung {network}"
    table = Table(title=title, title_justify="left", title_style="bold")
    between = [] if grounds.interval is None else ["80 %"]
    for name in ("bytes", "time", *between, "algorithm bandwidth", "bus bandwidth"):
        table.add_column(name, justify="right")
    table.add_column("carried by")
    table.add_column("limited by")
    for row in rows:
        rates = [f"{rate / 1e9:.2f} GB/s" for rate in (row.algorithm_Bps, row.bus_Bps)]
        ends = grounds.interval_s(row.time_s)
        numbers = [format_s(row.time_s), *([] if ends is None else [f"{format_s(ends[0])} to {format_s(ends[1])}"])]
        table.add_row(format_bytes(row.bytes_per_rank), *numbers, *rates, row.carried_by, _limit(row))
    console.print(table)
    console.print(NOTE)


def _limit(row: CollectiveTime) -> str:
    """The fullest links, by the name of the cable, with how full they are."""
    from moecast.sim.gains import cable_of

    if not row.limits:
        return "launch, barrier and latency"
    names = dict.fromkeys(cable_of(kind) for kind in row.limits)
    return f"{' and '.join(names)}, {row.utilisation[row.limits[0]]:.0%} full"
