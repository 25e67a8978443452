"""What the time of a collective by itself rests on."""

from __future__ import annotations

import pytest

from moecast.sim.accuracy import collective_grounds, collective_text
from moecast.sim.accuracy.grounds import NO_ROWS, check_rests_on
from moecast.topology import load_cluster


def test_inside_a_node_published_rows_speak_for_it() -> None:
    grounds = collective_grounds(load_cluster("dgx-h200"), "all-reduce", ranks=8)
    ends = grounds.interval_s(1.0)
    assert ends is not None
    assert 0.5 < ends[0] < 1 < ends[1] < 2
    check_rests_on(grounds.to_json())
    assert f"by {len(grounds.interval.rows)} rows of " in collective_text(grounds)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("preset", "nodes", "operation", "changed", "why"),
    [
        ("dgx-h200", 2, "all-to-all", {"ranks": 16}, "too few for an interval"),
        ("dgx-h200", 1, "all-reduce", {"ranks": 8, "kind": "ring"}, "kind ring over the links alone"),
        ("dgx-h200", 1, "send-recv", {"ranks": 8}, "send-recv"),
        ("gb200-nvl72", 1, "all-reduce", {"ranks": 72}, "72 GPUs of one domain: rows have at most 8"),
    ],
)
def test_where_there_are_none_it_says_why(preset, nodes, operation, changed, why) -> None:  # type: ignore[no-untyped-def]
    grounds = collective_grounds(load_cluster(preset, nodes=nodes), operation, **changed)
    assert grounds.interval is None
    text = collective_text(grounds)
    assert text.startswith(f"no interval: {NO_ROWS}: ")
    assert why in text
