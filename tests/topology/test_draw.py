"""The drawings: text that fits the terminal, and a picture that needs nothing but its file."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.topology import Cluster, load_cluster
from moecast.topology.draw import draw
from moecast.topology.picture import draw_figure, write_picture
from tests.topology.clusters import build, clusters

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"

LEAF_SPINE = """\
┌─ 8 spines: spine0 … spine7 ───────────────────────────┐
│ 8 cables from every leaf                              │
└───────────────────────┬────────────────────────────┬──┘
┌─ leaf0 ───────────────┴──┐ ┌─ leaf1 ───────────────┴──┐
│ ↑ 8 x 50 GB/s to spines  │ │ ↑ 8 x 50 GB/s to spines  │
│ ↓ 16 x 50 GB/s to NICs   │ │ ↓ 16 x 50 GB/s to NICs   │
├──────────────────────────┤ ├──────────────────────────┤
│ node0  GPU 0-7  8 NICs   │ │ node2  GPU 16-23  8 NICs │
│ node1  GPU 8-15  8 NICs  │ │ node3  GPU 24-31  8 NICs │
└──────────────────────────┘ └──────────────────────────┘"""


def test_a_leaf_spine_fabric_as_text() -> None:
    assert draw(build("leaf-spine", 4, oversubscription=2, nodes_per_leaf=2)) == LEAF_SPINE


@given(clusters(max_domains=12), st.integers(60, 160))
@settings(deadline=None, max_examples=40)
def test_drawings_are_boxes_that_fit(cluster: Cluster, width: int) -> None:
    lines = draw(cluster, width=width).splitlines()
    boxes = sum(line.count("┌") for line in lines)
    assert boxes == sum(line.count("└") for line in lines) == sum(line.count("┐") for line in lines)
    assert max(map(len, lines)) <= width
    for host in range(min(2, cluster.n_nodes)):
        assert sum(f"node{host}  GPU" in line for line in lines) == 1


def test_what_is_left_out_is_counted() -> None:
    drawn = draw(load_cluster("dgx-h200", nodes=64, fabric="leaf-spine:2"), width=80)
    assert "… and 24 more like these with 48 hosts" in drawn
    drawn = draw(load_cluster("gb200-nvl72"))
    assert "… 12 more hosts, to node17" in drawn
    assert "domain 0" in drawn


@pytest.mark.parametrize("name", ["dgx-h200", str(EXAMPLES / "cluster-listed.yaml")])
def test_a_picture_shows_every_node_and_cable(name: str) -> None:
    cluster = load_cluster(name)
    figure = json.loads(draw_figure(cluster).to_json())
    nodes = [trace for trace in figure["data"] if trace["mode"] == "markers" and "symbol" in trace["marker"]]
    assert sum(len(trace["text"]) for trace in nodes) == len(cluster.nodes)
    cables = [
        text for trace in figure["data"] if trace["mode"] == "markers" for text in trace["text"] if "GB/s" in text
    ]
    assert len(cables) >= len(cluster.links) / 2


def test_same_fabric_same_page(tmp_path: Path) -> None:
    """Invariant 6: plotly's own id would differ."""
    for name in ("a.html", "b.html"):
        write_picture(build("rail", 2), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_picture_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    write_picture(build("rail", 2, name="<b>2 & 3</b>"), tmp_path / "fabric.html")
    page = (tmp_path / "fabric.html").read_text()
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page)
    assert not [tag for tag in tags if re.search(r"(src|href)=[\"']?(http|//)", tag)]
    assert "<h1>&lt;b&gt;2 &amp; 3&lt;/b&gt;</h1>" in page
    assert [path.name for path in tmp_path.iterdir()] == ["fabric.html"]
    with pytest.raises(MoecastError, match="folder does not exist"):
        write_picture(build("rail", 2), tmp_path / "no" / "fabric.html")
