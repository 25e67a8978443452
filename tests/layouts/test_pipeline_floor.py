"""The recursion over a pipeline's order: what time_order says of even work, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement.layouts.training.orders import OrderTable, order_table
from moecast.placement.layouts.training.pipeline_floor import time_cells
from moecast.sim.network import Bound
from moecast.sim.schedules.pipeline import CellSeconds, Pipeline, find_pipeline_schedule, make_order, time_order
from tests.sim.test_pipeline_lower import ends_of_cells, make_program, make_works

TABLE = order_table("1f1b", Pipeline(pp=2, microbatches=3))
ZERO = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("name", "virtual"), [("gpipe", 1), ("1f1b", 1), ("interleaved_1f1b", 2), ("zb_h1", 1), ("zb_v", 2)]
)
def test_without_pairs_it_is_what_the_order_takes(name: str, virtual: int) -> None:
    pipeline = Pipeline(pp=4, virtual=virtual, microbatches=8)
    order = make_order(find_pipeline_schedule(name), pipeline)
    seconds_C = [
        CellSeconds(forward_s=1 + 0.1 * chunk, inputs_s=1.5, weights_s=0.5 + 0.01 * chunk)
        for chunk in range(4 * virtual)
    ]
    cells_3C = np.array([(one.forward_s, one.inputs_s, one.weights_s) for one in seconds_C]).T
    want = max(timed.end_s for timed in time_order(order, seconds_C, send_s=0.2))
    table = order_table(name, pipeline)
    told = time_cells(table, cells_3C, cells_3C, np.zeros((2, 4 * virtual)), send_s=0.2, end_G=np.zeros(4))
    assert told == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", ["1f1b_overlapped", "dualpipe_v"])
def test_pairs_take_no_longer_than_their_cells_apart(name: str) -> None:
    virtual = 2 if name == "dualpipe_v" else 1
    pipeline = Pipeline(pp=2, virtual=virtual, microbatches=8)
    order, chunks = make_order(find_pipeline_schedule(name), pipeline), 2 * virtual
    seconds_C = [CellSeconds(forward_s=1, inputs_s=1, weights_s=1)] * chunks
    whole = max(timed.end_s for timed in time_order(order, seconds_C))
    table, ones_3C = order_table(name, pipeline), np.ones((3, chunks))
    computed = time_cells(table, ones_3C, ones_3C, np.zeros((2, chunks)), send_s=0.0, end_G=np.zeros(2))
    assert 24 * virtual <= computed <= whole
    sent = time_cells(table, ones_3C, ones_3C, np.full((2, chunks), 3.0), send_s=0.0, end_G=np.zeros(2))
    assert sent > computed


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([("1f1b_overlapped", 2, 1), ("dualpipe", 2, 1), ("dualpipe", 4, 1), ("dualpipe_v", 2, 2)]),
    st.integers(0, 2**31),
)
def test_pairs_are_no_sooner_done_than_that(asked: tuple[str, int, int], seed: int) -> None:
    """Against the pipeline's program by `bound`, in which a layer's backward begins by sending, for next to nothing."""
    name, pp, virtual = asked
    order = make_order(find_pipeline_schedule(name), Pipeline(pp=pp, virtual=virtual, microbatches=2 * pp))
    cells_3C = np.random.default_rng(seed).uniform(0.01, 3.0, (3, len(order.chunks.rank_C)))
    seconds_C = [CellSeconds(forward_s=f, inputs_s=b, weights_s=w) for f, b, w in cells_3C.T.tolist()]
    program = make_program(order, make_works(order, seconds_C, travel_s=1e-9), send_s=0.1)
    done_G = ends_of_cells(program, Bound().run(program), order)
    floor = time_cells(
        OrderTable.of(order), cells_3C, cells_3C, np.zeros((2, len(seconds_C))), send_s=0.1, end_G=np.zeros(pp)
    )
    assert floor <= done_G.max() * (1 + 1e-9)
    assert floor >= 0.8 * done_G.max()


def test_tables_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="computed_3C"):
        time_cells(TABLE, np.zeros((3, 3)), ZERO, np.zeros((2, 2)), send_s=0.0, end_G=np.zeros(2))
    with pytest.raises(ValueError, match="end_G"):
        time_cells(TABLE, ZERO, ZERO, np.zeros((2, 2)), send_s=0.0, end_G=np.zeros(1))
    for column, value in ((0, 9), (1, 2), (2, 3), (0, -1)):
        blocks = TABLE.blocks_N5.copy()
        blocks[0, column] = value
        with pytest.raises(ValueError, match="blocks_N5"):
            replace(TABLE, blocks_N5=blocks)
    for name, values in (("rank_C", [0, 7]), ("before_C", [-2, 0]), ("behind_C", [1, 2]), ("rank_C", [0.5, 1])):
        with pytest.raises((ValueError, TypeError), match=name):
            replace(TABLE, **{name: np.array(values)})
