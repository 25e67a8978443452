"""`moecast topology` as users call it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moecast.topology import list_presets, load_cluster

MAIN = "from moecast.cli import main; main()"
FOUR = ("dgx-h200", "--nodes", "4", "--fabric", "leaf-spine:2,routing=ecmp")


def run(*arguments: object, width: int = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, "topology", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"COLUMNS": str(width), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "utf-8"},
    )


def test_list() -> None:
    done = run("list")
    assert done.returncode == 0, done.stderr
    assert all(preset.name in done.stdout for preset in list_presets())
    rows = json.loads(run("list", "--json", "--seed", 3).stdout)
    assert [row["name"] for row in rows] == [preset.name for preset in list_presets()]


def test_show_prints_everything_and_draws_the_fabric() -> None:
    done = run("show", *FOUR, "--path", "0,31")
    assert done.returncode == 0, done.stderr
    for words in ("32 x H200 SXM", "388 GB/s", "2:1", "ecmp", "┌─ leaf0", "nvlink-out", "leaf-up", "efficiency.gemm"):
        assert words in done.stdout
    assert "node3/nic7->node3/gpu7" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_show_as_json() -> None:
    cluster = load_cluster("dgx-h200", nodes=4, fabric="leaf-spine:2,routing=ecmp")
    shown = json.loads(run("show", *FOUR, "--path", "0,31", "--seed", 7, "--json").stdout)
    assert (shown["n_gpus"], shown["n_domains"], shown["routing"]) == (32, 4, "ecmp")
    assert shown["counts"] == {"nic": 32, "nvswitch": 4, "leaf": 2, "spine": 8}
    assert shown["bisection_Bps"] == pytest.approx(388e9)
    assert shown["oversubscription"] == pytest.approx(2)
    assert len(shown["link_list"]) == len(cluster.links)
    assert shown["hardware"]["sources"]["memory_Bps"]
    routes = cluster.routes([0], [31], seed=7)
    assert shown["path"]["links"] == [cluster.link_names_J[link] for link in routes.link_X]


def test_show_writes_a_picture_and_a_file_that_comes_back(tmp_path: Path) -> None:
    html, yaml = tmp_path / "fabric.html", tmp_path / "mine.yaml"
    done = run("show", *FOUR, "--html", html, "--yaml", yaml, "--links")
    assert done.returncode == 0, done.stderr
    assert "leaf1->spine7" in done.stdout
    assert html.stat().st_size > 1_000_000
    assert load_cluster(yaml) == load_cluster("dgx-h200", nodes=4, fabric="leaf-spine:2,routing=ecmp")
    again = run("show", yaml, "--json")
    assert json.loads(again.stdout)["n_gpus"] == 32


@pytest.mark.parametrize("command", ["list", "show"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: moecast topology {command}" in run(command, "--help").stdout


LOST = """
hardware: {preset: dgx-h100}
gpus: [{name: a, node: 0, domain: 0}, {name: b, node: 1, domain: 1}]
nics: [{name: n, node: 0}]
links: [{between: [a, n], bandwidth: 1 GB/s, latency: 1 us}]
"""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("preset: dgx-h200\nnodse: 4\n", "bad.yaml: nodse: unknown field"),
        ("preset: dgx-h200\ndomain: {nic_bandwidth: -50 GB/s}\n", "bad.yaml: domain.nic_bandwidth = '-50 GB/s': "),
        ("preset: dgx-h200\ndomain: {nic_bandwidth: 50}\n", "bad.yaml: domain.nic_bandwidth = 50: give a bandwidth"),
        (LOST, "bad.yaml: GPU b is unreachable from GPU a"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    refused(tmp_path / "bad.yaml", "--html", tmp_path / "fabric.html", words=words)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dgx-h2",), "no such preset"),
        (("dgx-h200", "--fabric", "mesh"), "fabric = 'mesh'"),
        (("dgx-h200", "--path", "0"), "--path = '0': give two GPU ids"),
        (("dgx-h200", "--path", "0,8"), "GPU ids are 0 to 7 here"),
        (("dgx-h200", "--html", "/nowhere/fabric.html"), "/nowhere: the output folder does not exist"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    refused(*arguments, words=words)


def refused(*arguments: object, words: str) -> None:
    done = run("show", *arguments, width=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("moecast: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
