"""Published rows are well formed, and what predicts them is asked the same thing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moecast.sim import find_rung, load_model
from moecast.topology import list_presets, load_cluster
from moecast.validate.published import SOURCES, Row, markdown, mean_error, predict
from moecast.validate.published.questions import AllToAll, TokenExchange
from moecast.validate.published.routing import uniform_trace

ROWS = [row for source in SOURCES for row in source.rows]
SMALL = [
    row
    for row in ROWS
    if isinstance(row.question, AllToAll) or (isinstance(row.question, TokenExchange) and row.question.ranks <= 8)
]


def test_sources_and_rows_have_names_of_their_own() -> None:
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    for source in SOURCES:
        assert len({row.name for row in source.rows}) == len(source.rows)
        assert source.where
        assert source.conditions


@pytest.mark.parametrize("row", [row for row in ROWS if row.question is not None], ids=lambda row: row.name)
def test_questions_name_presets_and_rungs_that_exist(row: Row) -> None:
    assert row.question is not None
    assert getattr(row.question, "cluster") in {preset.name for preset in list_presets()}  # noqa: B009 - of any question
    assert getattr(row.question, "unit", row.unit) == row.unit
    find_rung(row.question.rung)


@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.name)
def test_predictions_are_finite_and_the_bound_is_below_fluid(row: Row) -> None:
    assert row.question is not None
    bound, fluid = (row.question.predict(find_rung(name)) for name in ("bound", "fluid"))
    assert 0 < fluid < math.inf
    if row.unit == "us":
        assert bound <= fluid * (1 + 1e-9)
    else:
        assert bound >= fluid * (1 - 1e-9)


def test_even_all_to_all_has_a_closed_form() -> None:
    cluster = load_cluster("dgx-h200")
    (nvlink_Bps,) = {c for c, kind in zip(cluster.capacity_J, cluster.link_kind_J, strict=True) if "nvlink" in kind}
    latency_s = float(cluster.routes([0], [1]).latency_F[0])
    setup_s = cluster.hardware.collective_launch_s + cluster.hardware.barrier_s
    expected_us = 1e6 * (setup_s + latency_s + 7 / 8 * 1e8 / nvlink_Bps)
    asked = AllToAll(cluster="dgx-h200", ranks=8, bytes_per_rank=1e8)
    assert asked.predict(find_rung("fluid")) == pytest.approx(expected_us, rel=1e-9)


def test_bytes_are_counted_as_deepep_counts_them() -> None:
    trace = uniform_trace(tokens=64, experts=256, choices=8)
    asked = TokenExchange(cluster="h800-node", ranks=8, tokens=8, mode="per_domain", exchange="dispatch", unit="GB/s")
    pairs = sum(len({int(expert) // 32 for expert in token}) for token in trace.experts_TLK[:, 0])
    model = load_model("deepseek-v3")
    assert asked._counted_bytes(model, trace) == pytest.approx(pairs / 8 * 7168 * (1 + 4 / 128))


def test_uniform_routing_chooses_different_experts() -> None:
    experts_TK = np.sort(uniform_trace(tokens=500, experts=32, choices=4).experts_TLK[:, 0], axis=1)
    assert (np.diff(experts_TK.astype(int), axis=1) > 0).all()
    assert np.bincount(experts_TK.ravel(), minlength=32).min() > 30


def test_the_table_shows_every_predicted_row_and_counts_the_rest() -> None:
    chosen = [source for source in SOURCES if source.name in ("4 x H100", "AWS")]
    outcomes = predict(chosen)
    text = markdown(outcomes)
    assert text.count("| 4 x H100 |") == 4
    assert "Not predicted, 6 rows: no preset has Elastic Fabric Adapters." in text
    errors = [abs(o.error) for o in outcomes if o.error is not None and o.row.use == "check"]
    assert mean_error(outcomes, "check") == pytest.approx(sum(errors) / len(errors))


def test_a_row_is_predicted_or_says_why_not() -> None:
    with pytest.raises(ValueError, match="either a question or why_not"):
        Row(name="x", value=1.0, unit="us", use="check")
