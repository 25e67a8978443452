"""Cluster files: round trips, and what is wrong with a bad one in one line."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.topology import Cluster, Link, list_presets, load_cluster, write_cluster
from moecast.topology.builders import build_cluster
from tests.topology.clusters import DOMAIN, HARDWARE, build, clusters

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
IN_A_FILE = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(clusters(), st.booleans())
@IN_A_FILE
def test_a_cluster_comes_back_from_its_file(tmp_path: Path, cluster: Cluster, listing: bool) -> None:
    write_cluster(cluster, tmp_path / "c.yaml", listing=listing)
    again = load_cluster(tmp_path / "c.yaml")
    assert again == cluster
    assert again.hardware == cluster.hardware


@given(
    preset=st.sampled_from([preset.name for preset in list_presets()]),
    nodes=st.integers(1, 3),
    fabric=st.sampled_from([None, "leaf-spine:2,routing=ecmp", "rail:1.5,nodes-per-leaf=2", "single-switch"]),
    tables=st.booleans(),
)
@IN_A_FILE
def test_a_preset_comes_back_from_its_file(
    tmp_path: Path, preset: str, nodes: int, fabric: str | None, tables: bool
) -> None:
    cluster = load_cluster(preset, nodes=nodes, fabric=fabric)
    write_cluster(cluster, tmp_path / "c.yaml", tables=tables)
    again = load_cluster(tmp_path / "c.yaml")
    assert again == cluster
    assert again.hardware == cluster.hardware
    assert again.recipe == cluster.recipe  # with the sources of all numbers
    assert ("memory_bandwidth" in (tmp_path / "c.yaml").read_text()) == tables


@given(
    gpus=st.integers(1, 6), data=st.data(), rate=st.floats(1e6, 1e13), latency=st.floats(0, 1e-3), direct=st.booleans()
)
@IN_A_FILE
def test_a_domain_comes_back_whatever_it_is_made_of(
    tmp_path: Path, gpus: int, data: st.DataObject, rate: float, latency: float, direct: bool
) -> None:
    nics = data.draw(st.integers(1, gpus))
    spread = [*range(nics), *data.draw(st.lists(st.integers(0, nics - 1), min_size=gpus - nics, max_size=gpus - nics))]
    domain = replace(
        DOMAIN,
        gpus_per_host=gpus,
        nics_per_host=nics,
        nic_of_gpu=tuple(data.draw(st.permutations(spread))),
        direct_nvlink=direct,
        nvlink_Bps=rate,
        nic_latency_s=latency,
        sources={"nic_Bps": "measured: 'here'"},
    )
    cluster = build("rail", 2, domain=domain, oversubscription=1.5)
    cluster = build_cluster(replace(cluster.recipe, hardware=replace(HARDWARE, message_s=latency, memory_Bps=rate)))
    for listing in (False, True):
        write_cluster(cluster, tmp_path / "c.yaml", listing=listing, tables=True)
        again = load_cluster(tmp_path / "c.yaml")
        assert again == cluster
        assert again.hardware == cluster.hardware


@given(rate=st.floats(1e-3, 1e15), latency=st.floats(0, 10))
@IN_A_FILE
def test_odd_numbers_come_back_bit_by_bit(tmp_path: Path, rate: float, latency: float) -> None:
    cluster = build("single-switch", 2, domain=replace(DOMAIN, gpus_per_host=1, nics_per_host=1))
    changed = replace(cluster.links[3], capacity_Bps=rate, latency_s=latency)
    cluster = replace(cluster, links=(*cluster.links[:3], changed, *cluster.links[4:]))
    write_cluster(cluster, tmp_path / "c.yaml")
    assert load_cluster(tmp_path / "c.yaml") == cluster


@pytest.mark.parametrize("name", ["dgx-h100", "gb200-nvl72"])
def test_a_preset_is_written_in_few_words(tmp_path: Path, name: str) -> None:
    cluster = load_cluster(name, nodes=2, fabric="rail:2")
    write_cluster(cluster, tmp_path / "short.yaml")
    assert len((tmp_path / "short.yaml").read_text().splitlines()) == 4
    assert load_cluster(tmp_path / "short.yaml") == cluster


def test_yaml_says_the_same_as_python(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("preset: dgx-h200\nnodes: 4\nfabric: leaf-spine:2\n")
    assert load_cluster(file) == load_cluster("dgx-h200", nodes=4, fabric="leaf-spine:2")
    assert load_cluster(file, nodes=2, fabric="rail:1") == load_cluster("dgx-h200", nodes=2, fabric="rail:1")
    file.write_text("preset: dgx-h200\nnodes: 2\ndomain: {nic_bandwidth: 400 Gb/s}\nhardware: {memory: 80 GiB}\n")
    cluster = load_cluster(file)
    assert {link.capacity_Bps for link in cluster.links if link.kind == "nic-out"} == {50e9}
    assert cluster.hardware.memory_bytes == 80 * 2**30
    assert cluster.hardware.sources["memory_bytes"] == "given in c.yaml"


def test_a_domain_without_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    write_cluster(load_cluster("dgx-h200", nodes=2), file, listing=True)
    table = file.read_text().split("gpus:")[0].split("hardware:")[1]
    rates = ", ".join(f"{name}_bandwidth: 50 GB/s, {name}_latency: 1 us" for name in ("nvlink", "pcie", "nic"))
    domain = f"{{gpus_per_host: 4, nics_per_host: 2, {rates}, switch_latency: 0 s}}"
    file.write_text(f"nodes: 3\nfabric: leaf-spine:1\ndomain: {domain}\nhardware:{table}")
    cluster = load_cluster(file)
    assert (cluster.name, cluster.n_gpus, cluster.routing) == ("3 x own leaf-spine:1", 12, "ecmp")
    write_cluster(cluster, tmp_path / "again.yaml")
    assert load_cluster(tmp_path / "again.yaml") == cluster


def test_the_examples_of_the_documentation_load() -> None:
    built = load_cluster(EXAMPLES / "cluster.yaml")
    assert (built.name, built.n_gpus, built.routing) == ("our-cluster", 32, "ecmp")
    assert built.hardware.efficiency["grouped_gemm"] == 0.6
    assert sum(node.kind == "nic" for node in built.nodes) == 16
    listed = load_cluster(EXAMPLES / "cluster-listed.yaml")
    assert (listed.n_gpus, listed.n_domains, listed.hardware.communication_sms) == (4, 2, 20)
    assert [type(link) for link in listed.links] == [Link] * 14


LISTED = """
hardware: {preset: dgx-h100}
gpus: [{name: a, node: 0, domain: 0}, {name: b, node: 0, domain: 0}, {name: lost, node: 0, domain: 0}]
switches: [{name: s, tier: nvswitch}]
links:
  - {between: [a, s], bandwidth: 3 GB/s, latency: 1 us}
  - {between: [b, s], bandwidth: 3 GB/s, latency: 1 us}
"""
WHOLE = LISTED + "  - {between: [lost, s], bandwidth: 3 GB/s, latency: 1 us}\n"

BAD = {
    "unknown field": ("preset: dgx-h200\nnodse: 4", "nodse: unknown field"),
    "unknown field below": ("preset: dgx-h200\ndomain: {nic: 3}", "domain.nic: unknown field"),
    "no unit": ("preset: dgx-h200\ndomain: {nic_bandwidth: 50}", "domain.nic_bandwidth = 50: give a bandwidth with"),
    "no unit in a string": ("preset: dgx-h200\ndomain: {nic_bandwidth: '50'}", "domain.nic_bandwidth = '50': give"),
    "another unit": ("preset: dgx-h200\ndomain: {nic_bandwidth: 50 us}", "domain.nic_bandwidth = '50 us': give"),
    "negative": ("preset: dgx-h200\ndomain: {nic_bandwidth: -50 GB/s}", "domain.nic_bandwidth = '-50 GB/s': "),
    "zero": ("preset: dgx-h200\ndomain: {nic_bandwidth: 0 GB/s}", "domain.nic_bandwidth = '0 GB/s': must be greater"),
    "a power": ("preset: dgx-h200\ndomain: {nic_latency: 9**9**9 s}", "domain.nic_latency = '9**9**9 s'"),
    "negative link": (WHOLE.replace("3 GB/s", "-3 GB/s", 1), "links[0].bandwidth = '-3 GB/s'"),
    "unit-less link": (WHOLE.replace("1 us", "1", 1), "links[0].latency = 1: give a time with its unit"),
    "unreachable": (LISTED, "GPU lost is unreachable from GPU a over NVLink"),
    "no such node": (WHOLE.replace("[a, s]", "[a, t]"), "links[0]: no node is called 't'"),
    "twice": (WHOLE + "  - {from: a, to: s, bandwidth: 1 GB/s, latency: 1 s}", "link a->s is given twice"),
    "two ways": (WHOLE + "  - {between: [a, s], to: s, bandwidth: 1 GB/s, latency: 1 s}", "links[3]: give either"),
    "wrong ends": (WHOLE.replace("nvswitch", "leaf"), "links[0]: link a->s: a gpu cannot be linked to a leaf"),
    "wrong tier": (WHOLE.replace("nvswitch", "hub"), "switches[0].tier = 'hub'"),
    "missing": (WHOLE.replace(", latency: 1 us", "", 1), "links[0].latency: missing"),
    "no links": (LISTED.split("links:")[0], "links: missing"),
    "no hardware": (WHOLE.replace("hardware: {preset: dgx-h100}", ""), "hardware.name: missing"),
    "two forms": (WHOLE + "preset: dgx-h200", "preset: does not go with a list of links"),
    "neither form": ("nodes: 3", "preset: missing"),
    "preset": ("preset: dgx-h2", "preset = 'dgx-h2': no such preset"),
    "hardware preset": (WHOLE.replace("dgx-h100", "h1"), "hardware.preset = 'h1': no such preset"),
    "fabric": ("preset: dgx-h200\nfabric: mesh:2", "fabric = 'mesh:2': give a fabric such as"),
    "fabric's type": ("preset: dgx-h200\nfabric: 2", "fabric = 2: give a fabric such as"),
    "fabric's ratio": ("preset: dgx-h200\nfabric: {shape: rail, oversubscription: .nan}", "fabric.oversubscription"),
    "routing": ("preset: dgx-h200\nrouting: spray", "routing: stands under fabric"),
    "no nodes": ("preset: dgx-h200\nnodes: 0", "nodes = 0: must be greater than or equal to 1"),
    "too many": ("preset: dgx-h200\nnodes: 999999", "7999992 GPUs are more than the 16384"),
    "not a number": ("preset: dgx-h200\nnodes: yes", "nodes = True: must be a valid integer"),
    "efficiency": ("preset: dgx-h200\nhardware: {efficiency: {gemm: 1.5}}", "hardware: efficiency.gemm = 1.5"),
    "element type": ("preset: dgx-h200\nhardware: {peak: {int1: 1 TFLOP/s}}", "hardware: peak_flop_per_s.int1"),
    "source": ("preset: dgx-h200\nhardware: {sources: {smss: me}}", "hardware.sources.smss: a source is given for"),
    "a NIC that is not there": ("preset: dgx-h200\ndomain: {nic_of_gpu: [0, 1, 2, 3, 4, 5, 6, 8]}", "one of 0 to 7"),
    "too few NICs": ("preset: dgx-h200\ndomain: {nic_of_gpu: [0]}", "nic_of_gpu = (0,): one of 0 to 7 for each"),
    "direct over hosts": ("preset: gb200-nvl72\ndomain: {direct_nvlink: true}", "does not go with hosts = 18"),
    "direct as text": ("preset: dgx-h200\ndomain: {direct_nvlink: 'yes'}", "domain.direct_nvlink = 'yes'"),
    "domain": ("domain: {hosts: 2}\nhardware: {preset: dgx-h100}", "domain.gpus_per_host: missing"),
    "a name to trick terminals": (WHOLE.replace("name: a,", 'name: "a\\e[2J",'), "gpus[0].name = "),
    "key twice": ("preset: dgx-h200\nnodes: 3\nnodes: 4", "line 3: is not YAML ('nodes' stands twice)"),
    "no YAML": ("a: [", "is not YAML"),
    "a tag": ("!!python/object/apply:os.getcwd []", "line 1: is not YAML"),
    "no mapping": ("[1, 2]", "a cluster file is a mapping of fields"),
    "deep": ("[" * 5000, "is not YAML"),
    "empty": ("", "a cluster file is a mapping of fields"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(MoecastError) as caught:
        load_cluster(file)
    line = str(caught.value)
    assert line.startswith(f"{file}: ")
    assert words in line
    assert "\n" not in line


def test_a_listing_cannot_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(WHOLE)
    assert load_cluster(tmp_path / "c.yaml").n_gpus == 3
    with pytest.raises(MoecastError, match="cannot be overridden"):
        load_cluster(tmp_path / "c.yaml", nodes=2)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match="cannot be read"):
        load_cluster(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(MoecastError, match="not UTF-8"):
        load_cluster(tmp_path / "latin.yaml")
    with pytest.raises(MoecastError, match="folder does not exist"):
        write_cluster(load_cluster("dgx-h100"), tmp_path / "no" / "c.yaml")


def test_a_file_is_written_though_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    """`moecast topology show … --yaml c.yaml | head -1`."""
    command = [sys.executable, "-m", "moecast", "topology", "show", "dgx-h200", "--yaml", str(tmp_path / "c.yaml")]
    reader, writer = os.pipe()
    os.close(reader)
    subprocess.run(command, stdout=writer, stderr=subprocess.DEVNULL, check=False)
    os.close(writer)
    assert load_cluster(tmp_path / "c.yaml").n_gpus == 8
