"""Hosts as their own tools describe them: `nvidia-smi topo -m` as users paste it, and NCCL's XML."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.sim import find_rung, kernels_on, time_collective
from moecast.topology import Cluster, Domain, load_cluster, write_cluster
from moecast.traces import LoadTable, TraceMeta, write_load_table

AFFINITY = ("0-47", "48-95")


def table(rows: list[list[str]], nics: list[str], links: str = "NV18", *, sep: str = "  ", numa: bool = True) -> str:
    """A host's table: NVLink between all GPUs, `rows` of connections to the NICs."""
    gpus = [f"GPU{index}" for index in range(len(rows))]
    tail = ["CPU Affinity", "NUMA Affinity"] if numa else []
    lines = ["\t" + sep.join([*gpus, *nics, *tail])]
    for index, (gpu, row) in enumerate(zip(gpus, rows, strict=True)):
        half = int(index >= len(gpus) / 2)
        peers = [" X " if peer == gpu else links for peer in gpus]
        lines.append(sep.join([gpu, *peers, *row, *([AFFINITY[half], str(half)] if numa else [])]))
    for index, nic in enumerate(nics):
        lines.append(sep.join([nic, *(row[index] for row in rows), *(" X " if n == nic else "SYS" for n in nics)]))
    return "\n".join(lines) + "\n"


def near(pairs: dict[int, str], nics: int, far: str = "SYS") -> list[str]:
    return [pairs.get(nic, far) for nic in range(nics)]


def nics_of(count: int) -> list[str]:
    return [f"NIC{index}" for index in range(count)]


# nccl issue 1357, nccl-tests issue 232: four NICs beside GPUs 0, 2, 4 and 6.
FOUR = table([near({gpu // 2: "PIX"} if gpu % 2 == 0 else {}, 4) for gpu in range(8)], nics_of(4))


def built(tmp_path: Path, text: str, name: str = "topo.txt", **more: object) -> Cluster:
    (tmp_path / name).write_text(text)
    return load_cluster(tmp_path / name, **more)  # type: ignore[arg-type]


def domain_of(cluster: Cluster) -> Domain:
    assert cluster.recipe is not None
    return cluster.recipe.domain


def notes_of(cluster: Cluster) -> str:
    assert cluster.recipe is not None
    return "; ".join(cluster.recipe.notes)


def kinds(cluster: Cluster) -> tuple[int, int, int]:
    names = [node.kind for node in cluster.nodes]
    return names.count("gpu"), names.count("nic"), names.count("nvswitch")


def test_four_nics_for_eight_gpus(tmp_path: Path) -> None:
    one = built(tmp_path, FOUR, preset="dgx-h100")
    assert kinds(one) == (8, 4, 1)
    assert domain_of(one).nic_of_gpu is None  # neighbours share one, as in a cluster file with nics_per_host: 4
    assert "no NIC near GPU1 (SYS), GPU3 (SYS)" in notes_of(one)
    two = load_cluster(tmp_path / "topo.txt", nodes=2, preset="dgx-h100")
    (tmp_path / "four.yaml").write_text("preset: dgx-h100\nnodes: 2\ndomain: {nics_per_host: 4}\n")
    by_hand = load_cluster(tmp_path / "four.yaml")
    assert (two.nodes, two.links, two.hardware) == (by_hand.nodes, by_hand.links, by_hand.hardware)
    bus_Bps = time_collective(two, "all-to-all", [2.0**30], rung=find_rung("fluid"))[0].bus_Bps
    assert bus_Bps / 1e9 == pytest.approx(2 * 48.5 / 2 * 15 / 16, rel=0.01)


LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_bond_0
"""


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("  ", "\t"),
        lambda text: "$ nvidia-smi topo -m\n\x1b[4m" + text.replace("\n", "\x1b[0m\n", 1) + LEGEND,
        lambda text: "\n".join("> " + line for line in text.splitlines()),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "Here is ours:\n```\n" + text + "```\n",
        lambda text: text.replace("NIC", "mlx5_"),
        lambda text: text.replace("SYS", "SOC"),
        lambda text: text.replace("NUMA Affinity", "NUMA Affinity  GPU NUMA ID").replace("47  0", "47  0  N/A"),
        lambda text: "\n".join(line for line in text.splitlines() if not line.startswith("NIC")),
        lambda text: "\ufeff" + text,
    ],
)
def test_forms_in_which_it_is_pasted(tmp_path: Path, change: object) -> None:
    text = change(FOUR)  # type: ignore[operator]
    (tmp_path / "topo.txt").write_bytes(text.encode())
    found = load_cluster(tmp_path / "topo.txt", preset="dgx-h100")
    assert found == built(tmp_path, FOUR, preset="dgx-h100")


def test_the_legend_names_nics(tmp_path: Path) -> None:
    found = domain_of(built(tmp_path, table([["PIX", "SYS"], ["SYS", "PIX"]], nics_of(2)) + LEGEND))
    assert "GPU0 mlx5_0, GPU1 mlx5_bond_0" in found.sources["nic_of_gpu"]


def test_pairs_behind_one_switch_and_nics_for_storage(tmp_path: Path) -> None:
    """A Supermicro host: two GPUs and two NICs below each switch, two more NICs far from all."""
    rows = [near({gpu // 2 * 2: "PXB", gpu // 2 * 2 + 1: "PXB"}, 10) for gpu in range(8)]
    found = built(tmp_path, table(rows, nics_of(10)), preset="dgx-h100")
    assert kinds(found) == (8, 8, 1)
    assert domain_of(found).nic_of_gpu is None
    assert notes_of(found) == "NICs left out, since no GPU uses them: NIC8, NIC9"


def test_nics_in_another_order_and_numa(tmp_path: Path) -> None:
    rows = [near({3 - gpu: "PIX"}, 4, "NODE") for gpu in range(4)]
    found = domain_of(built(tmp_path, table(rows, nics_of(4), "NV6")))
    assert found.nic_of_gpu is None  # NICs are numbered in the order of their GPUs
    assert "GPU0 NIC3, GPU1 NIC2" in found.sources["nic_of_gpu"]
    # One NIC a socket, by NUMA: GPUs 0, 1 take the one beside GPU 0.
    rows = [near({0: "PIX"} if gpu == 0 else {1: "PIX"} if gpu == 3 else {}, 2, "SYS") for gpu in range(4)]
    found = domain_of(built(tmp_path, table(rows, nics_of(2), "NV6")))
    assert [found.nic_of(gpu) for gpu in range(4)] == [0, 0, 1, 1]
    rows = [near({0: "NODE"} if gpu in (0, 2) else {1: "NODE"}, 2, "SYS") for gpu in range(4)]
    found = domain_of(built(tmp_path, table(rows, nics_of(2), "NV6", numa=False)))
    assert [found.nic_of(gpu) for gpu in range(4)] == [0, 1, 0, 1]


def test_several_nics_a_gpu_are_one_of_their_rate(tmp_path: Path) -> None:
    """AWS p5: four 100 Gb/s adapters beside each GPU."""
    rows = [near({4 * gpu + port: "PIX" for port in range(4)}, 32) for gpu in range(8)]
    text = table(rows, nics_of(32))
    found = built(tmp_path, text, preset="dgx-h100", nic_Bps=12e9)
    assert kinds(found) == (8, 8, 1)
    assert domain_of(found).nic_Bps == 48e9
    assert "4 NICs near each GPU are taken as one" in notes_of(found)
    # A second NIC beside one GPU only is another's business.
    rows = [near({gpu: "PIX", 8: "PIX"} if gpu == 0 else {gpu: "PIX"}, 9) for gpu in range(8)]
    assert "left out, since no GPU uses them: NIC8" in notes_of(built(tmp_path, table(rows, nics_of(9))))


def test_cables_between_gpus(tmp_path: Path) -> None:
    """Four GPUs with six links to each other one: 18 a GPU, so there is no NVSwitch."""
    rows = [near({gpu: "PHB"}, 4) for gpu in range(4)]
    found = built(tmp_path, table(rows, nics_of(4), "NV6"), preset="dgx-h100")
    assert kinds(found) == (4, 4, 0)
    direct = [link for link in found.links if link.kind == "nvlink-direct"]
    assert (len(direct), {link.capacity_Bps for link in direct}) == (12, {370e9 / 3})
    bus_Bps = time_collective(kernels_on(found, kernels="roofline"), "all-to-all", [2.0**30], rung=find_rung("fluid"))[
        0
    ].bus_Bps
    assert bus_Bps == pytest.approx(370e9, rel=0.01)  # each pair its own cable, and each GPU all of them at once
    # An A100 has 12 links, of the same rate each.
    assert domain_of(built(tmp_path, table(rows, nics_of(4), "NV12"))).nvlink_Bps == pytest.approx(370e9 * 12 / 18)
    assert domain_of(built(tmp_path, table(rows, nics_of(4), "NV8"), preset="h800-node")).nvlink_Bps == 160e9


def test_one_gpu_and_no_nic(tmp_path: Path) -> None:
    found = built(tmp_path, "\tGPU0\tCPU Affinity\nGPU0\t X \t0-11\n")
    assert kinds(found) == (1, 1, 1)
    assert "assumed to be those of dgx-h100" in notes_of(found)
    assert "names no NICs: 1, as in dgx-h100" in notes_of(found)


def test_a_tray_of_a_rack(tmp_path: Path) -> None:
    rows = [near({gpu: "PHB"}, 4, "NODE") for gpu in range(4)]
    found = built(tmp_path, table(rows, nics_of(4)), preset="gb200-nvl72")
    assert (found.n_gpus, found.n_domains, found.n_nodes) == (72, 1, 18)
    eight = built(tmp_path, table([near({gpu: "PIX"}, 8) for gpu in range(8)], nics_of(8)), preset="gb200-nvl72")
    assert (eight.n_gpus, eight.n_nodes) == (8, 1)
    assert "a host of gb200-nvl72 has 4 GPUs" in notes_of(eight)


def gpu_xml(dev: int, links: str, *, sm: int = 90, link: str = 'link_speed="32.0 GT/s PCIe" link_width="16"') -> str:
    bus = f"0000:{dev:02x}:01.0"
    return f'<pci busid="{bus}" class="0x030200" {link}><gpu dev="{dev}" sm="{sm}" rank="{dev}">{links}</gpu></pci>'


def nic_xml(dev: int, speed: int = 400000) -> str:
    net = f'<net name="mlx5_{dev}" dev="{dev}" speed="{speed}" port="1" latency="0.000000" maxconn="131072"/>'
    link = 'link_speed="32.0 GT/s PCIe" link_width="16"'
    return f'<pci busid="0000:{dev:02x}:02.0" class="0x020700" {link}><nic>{net}</nic></pci>'


SWITCHES = "".join(
    f'<nvlink target="0000:0{n}:00.0" count="{count}" tclass="0x068000"/>'
    for n, count in ((5, 4), (6, 5), (7, 5), (8, 4))
)


def xml(gpus: int = 8, nics: int = 8, *, links: str = SWITCHES, speed: int = 400000, **more: object) -> str:
    """A host as NCCL dumps it: two CPUs, a bridge for each GPU, and its NIC beside it."""
    cpus = []
    for cpu in range(2):
        bridges = []
        for dev in range(cpu * gpus // 2, (cpu + 1) * gpus // 2):
            nic = nic_xml(dev * nics // gpus, speed) if dev * nics % gpus == 0 else ""
            inside = gpu_xml(dev, links, **more) + nic  # type: ignore[arg-type]
            bridges.append(f'<pci busid="0000:{dev:02x}:00.0" class="0x060400">{inside}</pci>')
        cpus.append(f'<cpu host_hash="0x1" numaid="{cpu}" arch="x86_64">{"".join(bridges)}</cpu>')
    return f'<system version="1">{"".join(cpus)}</system>\n'


def test_nccl_says_the_same_as_nvidia_smi(tmp_path: Path) -> None:
    four = built(tmp_path, xml(nics=4), "topo.xml", preset="dgx-h100")
    assert (four.nodes, four.links) == (lambda c: (c.nodes, c.links))(built(tmp_path, FOUR, preset="dgx-h100"))
    whole = built(tmp_path, xml(), "topo.xml")
    plain = load_cluster("dgx-h100")
    assert (whole.nodes, whole.links, whole.hardware) == (plain.nodes, plain.links, plain.hardware)
    assert notes_of(whole) == "GPUs and rates are assumed to be those of dgx-h100: name another with --preset"


def test_rates_that_nccl_says(tmp_path: Path) -> None:
    found = domain_of(built(tmp_path, xml(speed=200000), "topo.xml", preset="dgx-h100"))
    assert found.nic_Bps == pytest.approx(48.5e9 / 2)
    assert found.sources["nic_Bps"] == "200 Gb/s (topo.xml), 97% of it usable as in dgx-h100"
    narrow = domain_of(built(tmp_path, xml(link='link_speed="16.0 GT/s PCIe" link_width="16"'), "topo.xml"))
    assert narrow.pcie_Bps == pytest.approx(55.4e9 / 2)
    unknown = domain_of(built(tmp_path, xml(link='link_speed="" link_width="0"'), "topo.xml"))
    assert unknown.pcie_Bps == 55.4e9
    slow = xml().replace("</cpu></system>", nic_xml(99, 25000) + "</cpu></system>")
    assert "left out, since no GPU uses them: mlx5_99" in notes_of(built(tmp_path, slow, "topo.xml"))
    assert "assumed to be those of gb200-nvl72" in notes_of(built(tmp_path, xml(sm=100), "topo.xml"))
    assert "capability 10, dgx-h100 has others" in notes_of(built(tmp_path, xml(sm=100), "topo.xml", preset="dgx-h100"))
    assert "no preset has GPUs of compute capability 8" in notes_of(built(tmp_path, xml(sm=80), "topo.xml"))


def test_gpus_that_nccl_sees_cabled(tmp_path: Path) -> None:
    pair = [
        '<nvlink target="0000:01:01.0" count="12" tclass="0x030200"/>',
        '<nvlink target="0000:00:01.0" count="12" tclass="0x030200"/>',
    ]
    body = "".join(gpu_xml(dev, links) + nic_xml(dev) for dev, links in enumerate(pair))
    found = built(tmp_path, f'<system version="1"><cpu numaid="0">{body}</cpu></system>', "topo.xml")
    assert domain_of(found).nvlink_Bps == pytest.approx(370e9 * 12 / 18)
    broken = f'<system version="1"><cpu numaid="0">{body.replace(pair[1], "")}</cpu></system>'
    with pytest.raises(MoecastError, match="GPU1: no NVLink to GPU0"):
        built(tmp_path, broken, "topo.xml")


BAD_TABLES = {
    "no table": ("GPUs: eight\n", "no table of `nvidia-smi topo -m`"),
    "something else": ("hello\n", "no cluster: a file that ends in .yaml, what `nvidia-smi topo -m` prints"),
    "cut": (FOUR[:300], "GPU2 = 'NV': a row has 12 connections"),
    "no row": ("\n".join(FOUR.splitlines()[:5]), "GPU4: has a column and no row"),
    "twice": (FOUR + FOUR, "GPU0: stands twice: one host's table is read"),
    "column twice": (FOUR.replace("GPU1", "GPU0"), "each with a column of its own"),
    "no NVLink": (FOUR.replace("NV18", "PHB"), "GPU0: no NVLink to GPU1 (PHB)"),
    "not alike": (table([["PIX"]] * 3, ["NIC0"]).replace("X   NV18", "X   NV12"), "X stands for itself, and both ways"),
    "no connection": (FOUR.replace("PIX", "FIX", 1), "GPU0 = 'FIX': a row has 12 connections"),
    "N/A": (FOUR.replace("PIX", "N/A", 1), "GPU0 to NIC0 = 'N/A': a NIC is at one of PIX, PXB"),
    "too many": ("\t" + " ".join(f"GPU{i}" for i in range(65)), "at most 64 GPUs"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_one_line(tmp_path: Path, case: str) -> None:
    text, words = BAD_TABLES[case]
    with pytest.raises(MoecastError) as caught:
        built(tmp_path, text)
    assert words in str(caught.value)
    assert str(tmp_path / "topo.txt") in str(caught.value)


BOMB = '<!DOCTYPE s [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><system version="1">&b;</system>'
OUTSIDE = '<!DOCTYPE s SYSTEM "file:///etc/passwd"><system version="1"/>'
BAD_XML = {
    "entities": (BOMB, "document types and entities are not read"),
    "outside": (OUTSIDE, "document types and entities are not read"),
    "no XML": ("<system", "is not XML"),
    "cut": (xml()[:-20], "is not XML"),
    "another root": ("<html></html>", "<html>: a topology of NCCL starts with <system>"),
    "no GPU": ('<system version="1"><cpu numaid="0"/></system>', "0 GPUs and 0 NICs"),
    "deep": ("<system>" * 100, "32 inside each other"),
    "many": (f"<system>{'<a/>' * 20_001}</system>", "more than 20000 elements"),
    "two hosts": (xml().replace('0x1" numaid="1', '0x2" numaid="1'), "describes 2 hosts"),
    "no number": (xml().replace('dev="3" sm', 'dev="x" sm'), "dev = 'x': a number of 0 to 10000"),
    "not finite": (xml().replace("400000", "nan", 1), "speed = 'nan'"),
    "no NVLink": (xml(links=""), "GPU0: no NVLink to GPU1"),
    "one without": (
        xml().replace(SWITCHES, "", 1),
        "0 NVLinks to NVSwitches, others have 18",
    ),
    "rates": (xml().replace("400000", "300000", 1), "different rates (300 Gb/s and 400 Gb/s)"),
    "no rate": (xml(speed=0), "its NICs have speed 0"),
    "an unknown coding": ('<?xml version="1.0" encoding="x"?><system/>', "is not XML"),
}


@pytest.mark.parametrize("case", BAD_XML)
def test_bad_xml_is_one_line(tmp_path: Path, case: str) -> None:
    text, words = BAD_XML[case]
    with pytest.raises(MoecastError) as caught:
        built(tmp_path, text, "topo.xml")
    assert words in str(caught.value)
    assert str(tmp_path / "topo.xml") in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), source=st.sampled_from([FOUR, xml(), xml(nics=4)]))
def test_damaged_files_are_read_or_refused(tmp_path: Path, data: st.DataObject, source: str) -> None:
    raw = bytearray(source.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        part = data.draw(st.sampled_from([b"", b"9", b"-1", b"NV0", b" ", b"\n", b"\x00", b"\xff", b"1e9", b"GPU0"]))
        raw[at : at + data.draw(st.integers(0, 9))] = part
    (tmp_path / "t").write_bytes(raw)
    try:
        found = load_cluster(tmp_path / "t")
    except MoecastError:
        return
    write_cluster(found, tmp_path / "c.yaml", tables=True)
    assert load_cluster(tmp_path / "c.yaml") == found


def test_import_by_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "topo.txt").write_text(FOUR)
    out = tmp_path / "c.yaml"
    asked = ["topology", "import", str(tmp_path / "topo.txt"), "--out", str(out), "--nodes", "2", "--fabric", "rail:1"]
    value = json.loads(CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False).stdout)
    assert (value["n_gpus"], value["counts"]["nic"]) == (16, 8)
    assert "assumed to be those of dgx-h100" in value["notes"][0]
    assert out.read_text().startswith("# GPUs and rates are assumed to be those of dgx-h100")
    assert load_cluster(out) == load_cluster(tmp_path / "topo.txt", nodes=2, fabric="rail:1")
    rated = [*asked, "--preset", "dgx-h200", "--nic-bandwidth", "40 GB/s"]
    assert "wrote" in CliRunner().invoke(app, rated, catch_exceptions=False).stdout
    assert domain_of(load_cluster(out)).nic_Bps == 40e9
    shown = CliRunner().invoke(app, ["topology", "show", str(tmp_path / "topo.txt")], catch_exceptions=False).stdout
    assert "8 x H100 SXM" in shown
    assert "4 nic, 1 nvswitch" in shown


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--preset", "h100"], "preset = 'h100': no such preset"),
        (["--nic-bandwidth", "40"], "--nic-bandwidth = '40': give a bandwidth with its unit"),
        (["--fabric", "mesh"], "fabric = 'mesh'"),
        (["--out", "c.txt"], "--out = 'c.txt': name a file that ends in .yaml"),
        (["--nodes", "9999"], "79992 GPUs are more than the 16384"),
    ],
)
def test_bad_import_commands_write_nothing(tmp_path: Path, more: list[str], words: str) -> None:
    (tmp_path / "topo.txt").write_text(FOUR)
    asked = ["topology", "import", str(tmp_path / "topo.txt"), "--out", str(tmp_path / "c.yaml"), *more]
    with pytest.raises(MoecastError, match=words):
        CliRunner().invoke(app, asked, catch_exceptions=False)
    assert not (tmp_path / "c.yaml").exists()


def test_options_of_hosts_are_refused_elsewhere() -> None:
    with pytest.raises(MoecastError, match="preset = 'dgx-h200': goes with what `nvidia-smi topo -m`"):
        load_cluster("dgx-h100", preset="dgx-h200")


def test_import_does_not_write_over_its_input(tmp_path: Path) -> None:
    (tmp_path / "topo.yaml").write_text(FOUR)
    asked = ["topology", "import", str(tmp_path / "topo.yaml"), "--out", str(tmp_path / "topo.yaml")]
    with pytest.raises(MoecastError, match="--out: is the same file as the host's description"):
        CliRunner().invoke(app, asked, catch_exceptions=False)
    assert (tmp_path / "topo.yaml").read_text() == FOUR


def test_import_does_not_write_over_its_input_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "topo.txt").write_text(FOUR)
    (tmp_path / "hard.yaml").hardlink_to(tmp_path / "topo.txt")
    asked = ["topology", "import", str(tmp_path / "topo.txt"), "--out", str(tmp_path / "hard.yaml")]
    with pytest.raises(MoecastError, match="is the same file as"):
        CliRunner().invoke(app, asked, catch_exceptions=False)
    assert (tmp_path / "topo.txt").read_text() == FOUR


def test_place_by_load_says_what_was_assumed_of_a_host(tmp_path: Path) -> None:
    """As every other command does."""
    (tmp_path / "topo.txt").write_text(FOUR)
    meta = TraceMeta(model="m", layers=1, experts=8, choices=1)
    write_load_table(LoadTable(load_LE=np.arange(8)[None], meta=meta), tmp_path / "load.json")
    asked = ["place", "--load", str(tmp_path / "load.json"), "--cluster", str(tmp_path / "topo.txt")]
    asked += ["--out", str(tmp_path / "plan.json")]
    assumed = load_cluster(tmp_path / "topo.txt").notes[0]
    shown = CliRunner().invoke(app, asked, catch_exceptions=False, env={"COLUMNS": "300"})
    assert assumed in " ".join(shown.output.split())
    value = json.loads(CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False).output)
    assert assumed in value["notes"]
