"""Pipeline schedules: every pass once, no deadlock, and the published bubbles and activations on even work."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.schedules.pipeline import (
    PIPELINE_SCHEDULES,
    Cell,
    CellSeconds,
    Chunks,
    Pair,
    Pipeline,
    PipelineOrder,
    find_pipeline_schedule,
    make_order,
    time_order,
)

SMALL = [
    Pipeline(pp=p, virtual=v, microbatches=m) for p, v, m in itertools.product(range(1, 7), (1, 2, 3), range(1, 13))
]
SECONDS = st.floats(0.01, 10.0)


def even(order: PipelineOrder, forward_s=1.0, inputs_s=1.0, weights_s=1.0, pair_s=None) -> list[CellSeconds]:
    """The same seconds in every chunk."""
    seconds = CellSeconds(forward_s=forward_s, inputs_s=inputs_s, weights_s=weights_s, pair_s=pair_s)
    return [seconds] * len(order.chunks.rank_C)


def idle(order: PipelineOrder, *seconds: float | None) -> list[float]:
    """What each rank does not compute of the step."""
    timed = time_order(order, even(order, *seconds))
    step_s = max(block.end_s for block in timed)
    return [step_s - sum(b.end_s - b.start_s for b in timed if b.rank == rank) for rank in range(order.chunks.n_ranks)]


def order_of(name: str, pp: int, microbatches: int, virtual: int = 1) -> PipelineOrder:
    """The order of a schedule by name."""
    return make_order(find_pipeline_schedule(name), Pipeline(pp=pp, virtual=virtual, microbatches=microbatches))


@pytest.mark.parametrize("schedule", PIPELINE_SCHEDULES, ids=lambda schedule: schedule.name)
def test_every_small_pipeline_does_every_pass_once_and_ends(schedule):
    supported = [pipeline for pipeline in SMALL if schedule.supports(pipeline) is None]
    assert len(supported) >= 9
    for pipeline in supported:
        order = make_order(schedule, pipeline)  # checks itself that each cell stands in it once, on its rank
        merged = order.merged()
        assert sorted(map(str, merged)) == sorted(
            str((rank, block)) for rank, blocks in enumerate(order.blocks_G) for block in blocks
        )
        for rank, blocks in enumerate(order.blocks_G):
            assert [block for origin, block in merged if origin == rank] == list(blocks)


@pytest.mark.parametrize("schedule", PIPELINE_SCHEDULES, ids=lambda schedule: schedule.name)
def test_what_is_not_supported_is_refused_with_the_reason(schedule):
    refused = [pipeline for pipeline in SMALL if schedule.supports(pipeline) is not None]
    assert refused
    for pipeline in refused[:3]:
        with pytest.raises(MoecastError, match="asked for pp = "):
            make_order(schedule, pipeline)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cells_start_when_what_they_work_on_has_ended_and_ranks_do_one_at_a_time(data):
    schedule = data.draw(st.sampled_from(PIPELINE_SCHEDULES))
    pipeline = data.draw(st.sampled_from([pipeline for pipeline in SMALL if schedule.supports(pipeline) is None]))
    order = make_order(schedule, pipeline)
    seconds_C = [
        CellSeconds(forward_s=data.draw(SECONDS), inputs_s=data.draw(SECONDS), weights_s=data.draw(SECONDS))
        for _ in order.chunks.rank_C
    ]
    timed = time_order(order, seconds_C)
    spans = {(cell.kind, cell.chunk, cell.microbatch): block for block in timed for cell in block.block.cells}
    for route in order.chunks.routes:
        for (before, behind), microbatch in itertools.product(itertools.pairwise(route), range(pipeline.microbatches)):
            if ("F", before, microbatch) in spans:
                first, then = spans["F", before, microbatch], spans["F", behind, microbatch]
                assert first.end_s <= then.start_s
    for (kind, chunk, microbatch), block in spans.items():
        if kind != "F":
            assert spans["F", chunk, microbatch].end_s <= block.start_s
        if kind == "W":
            assert spans["B", chunk, microbatch].end_s <= block.start_s
        if kind in ("B", "BW") and (behind := order.chunks.behind_C[chunk]) >= 0:
            later = spans.get(("B", behind, microbatch)) or spans["BW", behind, microbatch]
            assert later.end_s <= block.start_s
    for rank in range(pipeline.pp):
        mine = [block for block in timed if block.rank == rank]
        assert all(earlier.end_s <= later.start_s for earlier, later in itertools.pairwise(mine))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 20), SECONDS, SECONDS, SECONDS)
def test_gpipe_and_1f1b_have_the_bubble_of_the_books(p, m, f, b, w):
    for name in ("gpipe", "1f1b"):
        order = order_of(name, p, m)
        timed = time_order(order, even(order, f, b, w))
        step_s = max(block.end_s for block in timed)
        assert step_s == pytest.approx((m + p - 1) * (f + b + w), rel=1e-9)
        assert idle(order, f, b, w) == pytest.approx([step_s * (p - 1) / (m + p - 1)] * p, rel=1e-9, abs=1e-9)
        kept = [order.peak_in_flight(rank) for rank in range(p)]
        assert kept == ([m] * p if name == "gpipe" else [min(p - rank, m) for rank in range(p)])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 20), SECONDS)
def test_forward_only_fills_once(p, m, f):
    assert idle(order_of("forward", p, m), f) == pytest.approx([(p - 1) * f] * p, rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 4), st.integers(1, 3), SECONDS, SECONDS, SECONDS)
def test_interleaving_divides_the_bubble_and_keeps_more(p, v, groups, f, b, w):
    order = order_of("interleaved_1f1b", p, groups * p, v)
    of_a_rank = [v * seconds for seconds in (f, b, w)]
    assert idle(order, f, b, w) == pytest.approx([(p - 1) * sum(of_a_rank) / v] * p, rel=1e-9, abs=1e-9)
    if groups > 1:
        assert order.peak_in_flight(0) / v == pytest.approx(p * (1 + (p - 1) / (p * v)), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(2, 3), SECONDS, SECONDS, SECONDS, st.floats(0.0, 1.0))
def test_overlapping_1f1b_fills_and_drains_as_interleaving_does_and_runs_pairs_between(p, v, groups, f, b, w, part):
    m = groups * p
    pair_s = max(f, b + w) + part * min(f, b + w)
    order = order_of("1f1b_overlapped", p, m, v)
    timed = time_order(order, even(order, f, b, w, pair_s))
    step_s = max(block.end_s for block in timed)
    alone = p * (f + b + w) * v
    assert step_s == pytest.approx((m * v - (v - 1) * p - 1) * pair_s + alone, rel=1e-9)
    kept = [order.peak_in_flight(rank) for rank in range(p)]
    assert kept == [min(2 * (p - rank) + (v - 1) * p, m * v) for rank in range(p)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 12), SECONDS, SECONDS, st.floats(0.0, 1.0))
def test_zb_h1_has_its_published_bubble_and_the_activations_of_1f1b(p, more, f, b, share):
    order = order_of("zb_h1", p, p + more)
    w = share * min(f, b)
    assert idle(order, f, b, w) == pytest.approx([(p - 1) * (f + b - w)] * p, rel=1e-9, abs=1e-8)
    assert [order.peak_in_flight(rank) for rank in range(p)] == [p] * p


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 8), SECONDS)
def test_zb_v_has_no_bubble_but_the_start_of_the_last_rank(p, more, f):
    order = order_of("zb_v", p, 2 * p - 1 + more, 2)
    assert idle(order, f, f, f) == pytest.approx([(p - 1) * f] * p, rel=1e-9, abs=1e-8)
    timed = time_order(order, even(order, f, f, f))
    for rank in range(p):
        mine = [block for block in timed if block.rank == rank]
        assert mine[-1].end_s - mine[0].start_s == pytest.approx(6 * order.microbatches * f, rel=1e-9)
        assert order.peak_in_flight(rank) == 2 * p  # of half a rank's layers each


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(0, 6), SECONDS)
def test_dualpipe_and_its_half_have_the_published_bubble_and_activations(data, half, more, b):
    w = data.draw(st.floats(0.0, 1.0)) * b
    f = b * data.draw(st.sampled_from([1.0, 1.0, 1.5, 3.0]))
    longer, shorter = max(f, b + w), min(f, b + w)  # under which the shorter hides in part
    pair_s = longer + data.draw(st.floats(0.0, 1.0)) * shorter
    full = order_of("dualpipe", 2 * half, 2 * (2 * half + more))
    folded = order_of("dualpipe_v", half, 2 * half + more, 2)
    for order, kept in ((full, 2 * half + 1), (folded, 2 * half + 1)):
        published = (half - 1) * (pair_s + (b + w) - 3 * w)
        assert max(idle(order, f, b, w, pair_s)) == pytest.approx(published + (half - 1) * (f - b), rel=1e-9, abs=1e-8)
        assert {order.peak_in_flight(rank) for rank in range(order.chunks.n_ranks)} == {kept}


def test_dualpipe_is_symmetric_and_its_half_is_a_half_of_it():
    full, folded = order_of("dualpipe", 8, 20), order_of("dualpipe_v", 4, 10, 2)
    kinds = [[tuple(cell.kind for cell in block.cells) for block in blocks] for blocks in full.blocks_G]
    assert kinds == kinds[::-1]
    assert kinds[:4] == [[tuple(cell.kind for cell in block.cells) for block in blocks] for blocks in folded.blocks_G]
    # deepseek-ai/DualPipe's picture of 8 ranks and 20 microbatches: the first rank's pairs, and its 7 forwards ahead
    assert sum(isinstance(block, Pair) for block in full.blocks_G[0]) == 2 * (10 - 8 + 1) + 3
    assert kinds[0][:8] == [("F",)] * 8


def test_an_order_that_waits_in_a_circle_is_named():
    chunks = Chunks(rank_C=(0, 1), routes=((0, 1),))
    first = (Cell("F", 0, 0), Cell("BW", 0, 0), Cell("F", 0, 1), Cell("BW", 0, 1))
    second = (Cell("F", 1, 1), Cell("F", 1, 0), Cell("BW", 1, 0), Cell("BW", 1, 1))
    order = PipelineOrder(chunks=chunks, microbatches=2, blocks_G=(first, second))
    with pytest.raises(
        MoecastError, match=r"deadlock; here rank 0 at BW of microbatch 0 in chunk 0 waits for B .* rank 1"
    ):
        order.merged()


@pytest.mark.parametrize(
    ("blocks", "rule"),
    [
        ((Cell("F", 0, 0), Cell("F", 0, 0)), "every cell once"),
        ((Cell("F", 0, 1),), "a chunk and microbatch of the pipeline"),
        ((Cell("F", 1, 0),), "a chunk and microbatch of the pipeline"),
        ((Cell("F", 0, 0), Cell("B", 0, 0)), "F, and B and W or both in one of microbatch 0 in chunk 0"),
        ((Cell("F", 0, 0), Cell("B", 0, 0), Cell("BW", 0, 0)), "F, and B and W or both in one"),
        ((), "F of microbatch 0 in chunk 0"),
    ],
)
def test_an_order_is_checked_when_it_is_made(blocks, rule):
    with pytest.raises(MoecastError, match=rule):
        PipelineOrder(chunks=Chunks(rank_C=(0,), routes=((0,),)), microbatches=1, blocks_G=(blocks,))


@pytest.mark.parametrize("field", ["pp", "virtual", "microbatches"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 10**9])
def test_the_numbers_of_a_pipeline_are_checked(field, value):
    numbers = {"pp": 2, "virtual": 1, "microbatches": 2, field: value}
    with pytest.raises(MoecastError):
        Pipeline(**numbers)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank_C": (0, 1), "routes": ((0,),)},
        {"rank_C": (0, 2), "routes": ((0, 1),)},
        {"rank_C": (0, 1, 1), "routes": ((0, 1), (2,))},
    ],
)
def test_chunks_are_checked(wrong):
    with pytest.raises(MoecastError):
        Chunks(**wrong)


def test_names():
    assert len({schedule.name for schedule in PIPELINE_SCHEDULES}) == len(PIPELINE_SCHEDULES)
    with pytest.raises(MoecastError, match="gpipe, 1f1b"):
        find_pipeline_schedule("2f2b")
