"""`moecast topology`: which clusters there are, and what one of them is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options
from moecast.cli.plain import say

if TYPE_CHECKING:
    from rich.console import Console

    from moecast.topology import Cluster

app = typer.Typer(no_args_is_help=True, help="Clusters: the presets, and what a preset or a YAML file is made of.")


@app.command("list", epilog="Example: moecast topology list")
def list_command(
    json: options.Json = False,
    seed: options.Seed = 0,  # every command takes one; nothing here is random
) -> None:
    """List the cluster presets."""
    del seed
    from moecast.topology import list_presets

    presets = list_presets()
    if json:
        _print_json(
            [
                {
                    "name": preset.name,
                    "summary": preset.summary,
                    "n_gpus": preset.domain.n_gpus,
                    "nvlink_Bps": preset.domain.nvlink_Bps,
                    "nic_Bps": preset.domain.nic_Bps,
                    "fabric": str(preset.fabric),
                }
                for preset in presets
            ]
        )
        return
    from moecast.units import format_Bps

    table = _table("preset", "GPUs", "NVLink", "NIC", "several of it", "what it is", right=(1, 2, 3))
    for preset in presets:
        table.add_row(
            preset.name,
            str(preset.domain.n_gpus),
            format_Bps(preset.domain.nvlink_Bps),
            format_Bps(preset.domain.nic_Bps),
            f"{preset.fabric.shape}:{preset.fabric.oversubscription:g}, {preset.fabric.routing}",
            preset.summary,
        )
    console = _console()
    console.print(table)
    console.print(
        "Rates are usable bytes per second, one GPU or NIC, one direction. Details: moecast topology show NAME"
    )


@app.command(
    "show",
    epilog="Example: moecast topology show dgx-h200 --nodes 4 --fabric leaf-spine:2 --html fabric.html",
)
def show_command(
    cluster: Annotated[
        str,
        typer.Argument(
            help="A preset (see list), a YAML file, or what `nvidia-smi topo -m` or NCCL says of a host.",
            show_default=False,
        ),
    ],
    nodes: options.Nodes = None,
    fabric: options.Fabric = None,
    path: Annotated[
        str | None,
        typer.Option("--path", help="Show the links between two GPUs, by id: 0,9.", show_default="none"),
    ] = None,
    links: Annotated[bool, typer.Option("--links", help="List every link.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write an interactive picture, one file, no network.", show_default="no picture"),
    ] = None,
    yaml: Annotated[
        Path | None,
        typer.Option("--yaml", help="Write all of the cluster as a YAML file to start from.", show_default="no file"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the ECMP hash that --path follows.")] = 0,
    json: options.Json = False,
) -> None:
    """Show GPUs, NICs, switches, links, bisection bandwidth, oversubscription and the hardware table, and draw it."""
    from moecast.files import check_outputs
    from moecast.topology import load_cluster, write_cluster

    built = load_cluster(cluster, nodes=nodes, fabric=fabric)
    ends = _ends(path, built) if path is not None else None
    check_outputs({"--html": html, "--yaml": yaml}, {"the cluster": cluster})
    if html is not None:
        from moecast.topology.picture import write_picture

        write_picture(built, html)
    if yaml is not None:
        write_cluster(built, yaml, tables=True)
    if json:  # files first: whoever reads what is printed may stop reading (`| head`)
        _print_json(_as_json(built, ends, seed))
    else:
        _print_cluster(_console(), built, ends, seed, every_link=links)
        for file in (html, yaml):
            if file is not None:
                say(f"wrote {file}")


@app.command(
    "import",
    epilog="Example: moecast topology import topo.txt --preset dgx-h100 --nodes 4 --fabric rail:1 --out cluster.yaml",
)
def import_command(
    file: Annotated[
        Path, typer.Argument(help="What `nvidia-smi topo -m` prints, or NCCL's topology dump.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The cluster, as a YAML file.", show_default=False)],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Whose GPUs and rates to take for what the file does not say.",
            show_default="a stated guess",
        ),
    ] = None,
    nic_bandwidth: Annotated[
        str | None,
        typer.Option(
            "--nic-bandwidth", help="Usable rate of one NIC: 48.5 GB/s.", show_default="the file's, the preset's"
        ),
    ] = None,
    nodes: options.Nodes = None,
    fabric: options.Fabric = None,
    seed: options.Seed = 0,  # as of list
    json: options.Json = False,
) -> None:
    """Turn a host's own description into a cluster file: which NIC is near which GPU, and how many NVLinks there are.

    Run `nvidia-smi topo -m` on a host, or any NCCL program with NCCL_TOPO_DUMP_FILE=topo.xml.
    """
    del seed
    from moecast.errors import MoecastError
    from moecast.files import check_outputs
    from moecast.topology import write_cluster
    from moecast.topology.fabric import parse_fabric
    from moecast.topology.host_file import read_host_cluster
    from moecast.units import parse

    if out.suffix not in (".yaml", ".yml"):
        raise MoecastError(
            "name a file that ends in .yaml: cluster files are known by it", field="--out", value=str(out)
        )
    check_outputs({"--out": out}, {"the host's description": file})
    built = read_host_cluster(
        file,
        nodes=nodes,
        fabric=None if fabric is None else parse_fabric(fabric),
        preset=preset,
        nic_Bps=None if nic_bandwidth is None else parse(nic_bandwidth, "bandwidth", field="--nic-bandwidth"),
    )
    write_cluster(built, out, tables=True)
    if json:
        _print_json(_as_json(built, None, 0))
    else:
        _print_cluster(_console(), built, None, 0, every_link=False)
        say(f"wrote {out}")


def _ends(path: str, cluster: Cluster) -> tuple[int, int]:
    from moecast.errors import MoecastError

    parts = path.replace(":", ",").split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise MoecastError("give two GPU ids, as in 0,9", field="--path", value=path)
    source, destination = (int(part) for part in parts)
    if max(source, destination) >= cluster.n_gpus:
        rule = f"GPU ids are 0 to {cluster.n_gpus - 1} here"
        raise MoecastError(rule, field="--path", value=path)
    return source, destination


def _print_cluster(
    console: Console, cluster: Cluster, ends: tuple[int, int] | None, seed: int, *, every_link: bool
) -> None:
    from moecast.topology.draw import draw
    from moecast.topology.measures import measure
    from moecast.units import format_Bps

    measures = measure(cluster)
    console.print(f"\n{cluster.name}", style="bold")
    for note in cluster.notes:
        console.print(note, style="yellow")
    facts = _table("", "", header=False)
    facts.add_row("GPUs", f"{measures.n_gpus} x {cluster.hardware.name}")
    facts.add_row("nodes, NVLink domains", f"{measures.n_nodes}, {measures.n_domains}")
    facts.add_row("NICs and switches", ", ".join(f"{count} {kind}" for kind, count in measures.counts.items()))
    facts.add_row("routing", _ROUTING[cluster.routing])
    facts.add_row(
        "bisection bandwidth",
        f"{format_Bps(measures.bisection_Bps)}, {format_Bps(measures.bisection_per_gpu_Bps)} a GPU of the half",
    )
    facts.add_row("oversubscription", f"{measures.oversubscription:g}:1")
    console.print(facts)
    console.print(draw(cluster, width=console.width), no_wrap=True, overflow="ignore")
    console.print(_link_table(cluster))
    if every_link:
        console.print(_every_link(cluster))
    if ends is not None:
        console.print(_path_table(cluster, ends, seed))
    console.print(_hardware_table(cluster))


_ROUTING = {
    "ecmp": "ecmp: a flow is hashed onto one of its shortest paths",
    "spray": "spray: a flow is divided over all its shortest paths, by what they carry (adaptive routing)",
}


def _link_table(cluster: Cluster) -> Any:
    from moecast.units import format_Bps, format_s

    recipe = cluster.recipe
    sources = dict(recipe.domain.sources) if recipe else {}
    if recipe and recipe.fabric:
        sources["leaf_Bps"] = f"follows from {recipe.fabric}"
    groups: dict[tuple[str, float, float], list[str]] = {}
    for link in cluster.links:
        groups.setdefault((link.kind.split("-")[0], link.capacity_Bps, link.latency_s), []).append(link.kind)
    table = _table("links", "how many", "each", "latency", "source of the rate", right=(1, 2, 3))
    for (stem, capacity, latency), kinds in groups.items():
        name = ", ".join(dict.fromkeys(kinds))
        table.add_row(
            name, str(len(kinds)), format_Bps(capacity), format_s(latency), sources.get(f"{stem}_Bps", "not given")
        )
    return table


def _every_link(cluster: Cluster) -> Any:
    from moecast.units import format_Bps, format_s

    table = _table("link", "kind", "rate", "latency", right=(2, 3))
    for link in cluster.links:
        table.add_row(link.name, link.kind, format_Bps(link.capacity_Bps), format_s(link.latency_s))
    return table


def _path_table(cluster: Cluster, ends: tuple[int, int], seed: int) -> Any:
    from moecast.units import format_Bps, format_s

    routes = cluster.routes([ends[0]], [ends[1]], seed=seed)
    table = _table(f"GPU {ends[0]} to GPU {ends[1]}", "part of the flow", "rate", "latency", right=(1, 2, 3))
    for index, share in zip(routes.link_X, routes.share_X, strict=True):
        link = cluster.links[index]
        table.add_row(link.name, f"{share:.4g}", format_Bps(link.capacity_Bps), format_s(link.latency_s))
    table.add_row("in all", "", "", format_s(routes.latency_F[0]))
    return table


def _hardware_table(cluster: Cluster) -> Any:
    hardware = cluster.hardware
    table = _table(hardware.name, "value", "source", right=(1,))
    for name, value in hardware.numbers().items():
        table.add_row(name, _readable(name, value), hardware.sources.get(name, "not given"))
    return table


def _readable(name: str, value: float) -> str:
    from moecast.units import format_Bps, format_bytes, format_s

    if name.startswith("peak_flop_per_s"):
        return f"{value / 1e12:.5g} TFLOP/s"
    for suffix, write in (("_Bps", format_Bps), ("_bytes", format_bytes), ("_s", format_s)):
        if name.endswith(suffix):
            return write(value)
    return f"{value:g}"


def _as_json(cluster: Cluster, ends: tuple[int, int] | None, seed: int) -> dict[str, Any]:
    from dataclasses import asdict

    from moecast.topology import Gpu
    from moecast.topology.measures import measure

    content: dict[str, Any] = {
        "name": cluster.name,
        **asdict(measure(cluster)),
        "routing": cluster.routing,
        "fabric": str(cluster.recipe.fabric) if cluster.recipe and cluster.recipe.fabric else None,
        "notes": list(cluster.notes),
        "link_sources": dict(cluster.recipe.domain.sources) if cluster.recipe else {},
        "hardware": {
            "name": cluster.hardware.name,
            **cluster.hardware.numbers(),
            "sources": dict(cluster.hardware.sources),
        },
        "gpus": [asdict(gpu) for gpu in cluster.gpus],
        "switches_and_nics": [
            {"name": node.name, "kind": node.kind} for node in cluster.nodes if not isinstance(node, Gpu)
        ],
        "link_list": [asdict(link) for link in cluster.links],
    }
    if ends is not None:
        routes = cluster.routes([ends[0]], [ends[1]], seed=seed)
        content["path"] = {
            "source": ends[0],
            "destination": ends[1],
            "seed": seed,
            "links": [cluster.link_names_J[index] for index in routes.link_X],
            "shares": routes.share_X.tolist(),
            "latency_s": float(routes.latency_F[0]),
        }
    return content


def _print_json(content: object) -> None:
    import json

    say(json.dumps(content, indent=2))


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, highlight=False)  # names come from files


def _table(*columns: str, right: tuple[int, ...] = (), header: bool = True) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if header else None, show_header=header, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", no_wrap=index == 0)
    return table
