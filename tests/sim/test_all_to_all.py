"""An even all-to-all against closed forms, and the command that prints it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.sim import find_rung, time_collective
from moecast.topology import Cluster, load_cluster

GIB = float(1 << 30)
NIC_GBps = 48.5  # of dgx-h100, usable


def bus_GBps(cluster: Cluster, rung: str = "fluid") -> float:
    return time_collective(cluster, "all-to-all", [GIB], rung=find_rung(rung))[0].bus_Bps / 1e9


@pytest.mark.parametrize("rung", ["bound", "fluid"])
@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_one_nic_a_gpu_on_rails(nodes: int, rung: str) -> None:
    """A maintainer of nccl-tests (issue 130): N / (N-1) of the NIC's rate, here of the part that leaves a GPU."""
    n = 8 * nodes
    built = load_cluster("dgx-h100", nodes=nodes, fabric="rail:1")
    assert bus_GBps(built, rung) == pytest.approx(nodes / (nodes - 1) * NIC_GBps * (n - 1) / n, rel=0.01)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_the_topology_changes_the_answer(ratio: int) -> None:
    """Two nodes to a leaf: 24 of a rank's 31 parts pass its NIC, 16 its leaf's uplinks."""
    built = load_cluster("dgx-h100", nodes=4, fabric=f"leaf-spine:{ratio}")
    assert bus_GBps(built) == pytest.approx(min(NIC_GBps * 31 / 24, NIC_GBps / ratio * 31 / 16), rel=0.01)


def test_two_gpus_share_a_nic(tmp_path: Path) -> None:
    (tmp_path / "four.yaml").write_text("preset: dgx-h100\nnodes: 2\ndomain: {nics_per_host: 4}\n")
    built = load_cluster(tmp_path / "four.yaml")
    assert bus_GBps(built) == pytest.approx(2 * NIC_GBps / 2 * 15 / 16, rel=0.01)
    row = time_collective(built, "all-to-all", [GIB], rung=find_rung("bound"))[0]
    assert set(row.limits) == {"nic-out", "nic-in"}


def test_what_limits() -> None:
    built = load_cluster("dgx-h100", nodes=4, fabric="leaf-spine:4")
    small, large = time_collective(built, "all-to-all", [1024, GIB], rung=find_rung("bound"))
    assert small.limits == ()
    assert set(large.limits) == {"leaf-up", "leaf-down"}
    assert large.utilisation["leaf-up"] == pytest.approx(1, abs=0.01)
    assert large.algorithm_Bps == pytest.approx(large.bus_Bps * 32 / 31)
    inside = time_collective(built, "all-to-all", [GIB], ranks=8, rung=find_rung("fluid"))[0]
    assert set(inside.limits) == {"nvlink-out", "nvlink-in"}


def test_the_command() -> None:
    asked = [
        "collective",
        "--cluster",
        "dgx-h100",
        "--nodes",
        "4",
        "--fabric",
        "leaf-spine:2",
        "--bytes",
        "64KiB,1 GiB",
    ]
    value = json.loads(CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False).stdout)
    assert (value["collective"], value["ranks"], value["network"]) == ("all-to-all", 32, "fluid")
    assert [row["bytes_per_rank"] for row in value["rows"]] == [65536, GIB]
    assert value["rows"][1]["bus_Bps"] == pytest.approx(47.0e9, rel=0.01)
    text = CliRunner().invoke(app, asked, catch_exceptions=False).stdout
    assert "launch, barrier and latency" in text
    assert "leaf uplinks, 100% full" in text
    assert "not modelled" in " ".join(text.split())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--bytes", "64"], "--bytes = '64': give a size with its unit"),
        (["--bytes", "64KiB,"], "--bytes = '': give a size"),
        (["--bytes", "0 B"], "a size is more than nothing"),
        (["--bytes", ",".join(["1 B"] * 65)], "at most 64 sizes"),
        (["--ranks", "9"], "ranks = 9: 2 to 8 GPUs take part"),
        (["--network", "packet"], "network = 'packet': one of bound, fluid"),
        (["--nodes", "999"], "ranks = 7992: 2 to 1024 GPUs take part"),
    ],
)
def test_bad_questions(more: list[str], words: str) -> None:
    with pytest.raises(MoecastError, match=words):
        CliRunner().invoke(app, ["collective", "--cluster", "dgx-h100", *more], catch_exceptions=False)
