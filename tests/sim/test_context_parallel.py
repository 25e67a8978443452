"""Ranks that share sequences: who has which token, what it reads where, and what that takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Compute, Exchange, PlacedModel, Plan, Step, StepProgram, find_rung, step_program
from moecast.sim.attention_shape import LinearAttention
from moecast.sim.context import order, sizes
from moecast.sim.context.keys import block_keys
from moecast.sim.context.rules import check_context
from moecast.sim.context.shared import SharedContext, home_ranks
from moecast.sim.context.split import ALL, NEAR, SLACK, SPLITS, WHOLE, ContextSplit, split_sequences
from moecast.sim.forward import ForwardPass
from moecast.sim.network import Bound, Fluid
from moecast.sim.program import CONTEXT
from moecast.sim.schedules import program_of
from moecast.sim.schedules.lay import settled
from moecast.sim.simulated import check_simulated
from moecast.topology import load_cluster
from tests.hostile import bad_ids
from tests.sim.plan_cases import random_step, small_trace, tiny_model
from tests.sim.toy_pass import ToyPass

CLOSE = {"rel": 1e-9, "abs": 1e-15}
RUNGS = [Bound(), Fluid()]
CLUSTER = load_cluster("dgx-h200", nodes=2)
TRACE = small_trace(tokens=400)
MODEL = tiny_model(TRACE)
EXCHANGES = ("ring", "all-gather", "token-ring")


def plan_of(*, cp: int, ep: int = 16, groups: int = 1, **changes: object) -> Plan:
    plan = Plan.contiguous(
        layers=TRACE.meta.layers, experts=TRACE.meta.experts, choices=TRACE.meta.choices, ep=ep, groups=groups
    )
    return plan.with_(gpu_of_rank=tuple(range(16)), cp=cp, **changes)


def even_step(plan: Plan, *, length: int, sequences: int = 1) -> Step:
    """Sequences of one length on each data-parallel rank, from their beginning on."""
    tokens = length * sequences * plan.dp
    return Step(
        token_T=np.arange(tokens) % TRACE.n_tokens,
        source_T=np.arange(tokens, dtype=np.int32) // (length * sequences),
        context_T=np.arange(tokens) % length + 1,
        phase="prefill",
    )


def forward_of(plan: Plan, step: Step) -> ForwardPass:
    return ForwardPass.of(PlacedModel.of(CLUSTER, MODEL, plan, phase=step.kernels), TRACE, step)


def split_of(kind: str, lengths: list[int], *, domains: list[int]) -> ContextSplit:
    first_S1 = np.concatenate([[0], np.cumsum(lengths)])
    return split_sequences(kind, first_S1, np.zeros(len(lengths), int), cp=len(domains), domain_of=[domains])


# Who has which token


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    domains=st.sampled_from([[0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 0, 1, 1, 1]]),
    kind=st.sampled_from(SPLITS),
)
def test_every_token_has_a_place_on_the_ranks_that_its_sequence_is_cut_over(
    lengths: list[int], domains: list[int], kind: str
) -> None:
    split = split_of(kind, lengths, domains=domains)
    domain_N = np.array(domains)
    assert len(split.place_T) == sum(lengths)
    for first, end in zip(split.first_S1, split.first_S1[1:], strict=False):
        places, [level] = split.place_T[first:end], np.unique(split.level_T[first:end])
        counts = np.bincount(places, minlength=len(domains))
        assert level == ALL or kind == "zeppelin"
        if level == WHOLE:
            assert np.count_nonzero(counts) == 1
            continue
        ring = np.flatnonzero(domain_N == domain_N[places[0]]) if level == NEAR else np.arange(len(domains))
        assert set(places) <= set(ring)
        assert np.ptp(counts[ring]) <= 2  # runs differ by a token


def test_a_zig_zag_gives_each_rank_as_many_tokens_and_as_many_keys_to_read() -> None:
    plan, runs = plan_of(cp=4), 8
    step = even_step(plan, length=runs * 6)
    keys = SharedContext.of(plan, step).keys()
    each = 6.0
    own, others = 2 * each**2 + each, 2 * each**2  # two triangles with their diagonals and one square; two squares
    expected_CN = np.where(np.tile(np.eye(4), (4, 1)) > 0, own, others)
    np.testing.assert_allclose(keys.keys_RCN.sum(axis=0), expected_CN, rtol=1e-12)
    assert np.bincount(home_ranks(plan, step)).tolist() == [2 * each] * 16
    contiguous = SharedContext.of(plan.with_(context_split="contiguous"), step).keys().keys_RCN.sum(axis=(0, 2))
    assert contiguous[3] == pytest.approx(7 * contiguous[0], rel=0.2)


def test_short_sequences_stay_whole_and_long_ones_are_cut() -> None:
    """Over 2 domains of 4 ranks: 8,000 tokens, 1,000 a rank."""
    split = split_of("zeppelin", [4800, 1600, *[200] * 8], domains=[0] * 4 + [1] * 4)
    levels = split.level_T[split.first_S1[:-1]]
    assert levels.tolist() == [ALL, NEAR, *[WHOLE] * 8]
    fullest = np.bincount(split.place_T, minlength=8).max()
    assert fullest <= 1000 * SLACK
    plain = split_of("zig-zag", [4800, 1600, *[200] * 8], domains=[0] * 4 + [1] * 4)
    assert (plain.level_T == ALL).all()


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=15),
    domains=st.sampled_from([[0, 0], [0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 0, 1, 1, 1]]),
)
def test_longer_sequences_are_cut_further(lengths: list[int], domains: list[int]) -> None:
    split = split_of("zeppelin", lengths, domains=domains)
    level_S = split.level_T[split.first_S1[:-1]]
    far = [n for n, level in zip(lengths, level_S, strict=True) if level == ALL]
    near = [n for n, level in zip(lengths, level_S, strict=True) if level != ALL]
    assert not far or not near or min(far) >= max(near)
    share, filled = sum(lengths) / len(domains), np.bincount(split.place_T, minlength=len(domains))
    assert filled.max() <= share * SLACK + 2 * len(lengths)  # a cut leaves a token or two more


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("cp", "tp"), [(2, 1), (4, 2), (16, 1)])
def test_each_choice_is_served_once_whoever_shares_what(cp: int, tp: int, split: str) -> None:
    plan = plan_of(cp=cp, tp=tp, context_split=split)
    step = random_step(np.random.default_rng(0), TRACE, ranks=plan.dp, tokens=200, phase="prefill")
    alone = forward_of(plan_of(cp=1, tp=16 // plan.dp), step)
    assert (forward_of(plan, step).traffic.load_LGP.sum(axis=(1, 2)) == alone.traffic.load_LGP.sum(axis=(1, 2))).all()


# What it reads where


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    before=st.integers(0, 30),
    window=st.sampled_from([None, 1, 3, 17, 500]),
    domains=st.sampled_from([[0], [0, 0], [0, 0, 1, 1], [0, 1, 2, 3]]),
    kind=st.sampled_from(SPLITS),
)
def test_keys_are_counted_as_by_hand(
    lengths: list[int], before: int, window: int | None, domains: list[int], kind: str
) -> None:
    split = split_of(kind, lengths, domains=domains)
    context_T = np.concatenate([before + 1 + np.arange(n) for n in lengths])
    found = block_keys(split, np.zeros(len(context_T), np.int32), context_T, domain_of=[domains], window=window)
    expected_CN, n = np.zeros((len(domains), len(domains))), 0
    for first, end in zip(split.first_S1, split.first_S1[1:], strict=False):
        ring = {WHOLE: [int(split.place_T[first])], ALL: list(range(len(domains)))}.get(int(split.level_T[first]))
        if ring is None:
            ring = [n for n, domain in enumerate(domains) if domain == domains[split.place_T[first]]]
        for token in range(first, end):
            for key in range(first - before, token + 1):
                if window is not None and token - key >= window:
                    continue
                if key >= first:
                    expected_CN[split.place_T[token], split.place_T[key]] += 1
                else:
                    expected_CN[split.place_T[token], ring] += 1 / len(ring)
        n = end
    assert n == len(context_T)
    np.testing.assert_allclose(found.keys_RCN.sum(axis=0), expected_CN, rtol=1e-9, atol=1e-9)


LENGTHS = [5, 7]
GOOD = {
    "source_T": np.zeros(12, np.int32),
    "context_T": np.concatenate([np.arange(n) + 1 for n in LENGTHS]),
    "place_T": split_of("zig-zag", LENGTHS, domains=[0, 0]).place_T,
    "level_T": np.full(12, ALL, np.int32),
    "first_S1": np.array([0, 5, 12]),
    "domain_of": np.zeros((1, 2), np.int32),
}


@settings(max_examples=80, deadline=None)
@given(data=st.data(), name=st.sampled_from(["source_T", "place_T", "level_T", "first_S1"]))
def test_keys_of_arrays_that_do_not_fit(data: st.DataObject, name: str) -> None:
    arrays = {**GOOD, name: data.draw(bad_ids(GOOD[name]))}
    split = ContextSplit(**{field: arrays[field] for field in ("place_T", "level_T", "first_S1")})
    with pytest.raises((ValueError, TypeError), match=r"\w"):
        block_keys(split, arrays["source_T"], arrays["context_T"], domain_of=arrays["domain_of"])


def test_a_token_reads_at_least_what_its_sequence_has_before_it() -> None:
    split = split_of("zig-zag", [5, 7], domains=[0, 0])
    with pytest.raises(ValueError, match=r"context_T\[1\] = 1: its sequence has 1 tokens before it"):
        block_keys(split, np.zeros(12, np.int32), np.ones(12, int), domain_of=[[0, 0]])


# How blocks and what is sent stand beside each other

TOY = ToyPass(layers=1)


def time_s(rung: object, tasks: list[Compute | Exchange]) -> float:
    before = Compute(kind="attention", layer=0, seconds_R=np.zeros(2))
    return float(rung.run(TOY.program(settled([before, *tasks]))).step_time_s)


def blocks_of(seconds: list[float]) -> list[Compute]:
    return [Compute(kind="attention", layer=0, seconds_R=np.full(2, s)) for s in seconds]


def sends_of(seconds: list[float]) -> list[Exchange]:
    return [next(iter(replace(TOY, dispatch_s=s).dispatch(0))) for s in seconds]


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize(("block", "send"), [(3.0, 2.0), (2.0, 3.0), (1.0, 1.0)])
def test_a_ring_takes_a_block_and_then_the_longer_of_block_and_send(
    rung: object, n: int, block: float, send: float
) -> None:
    tasks = list(order.ring(blocks_of([block] * n), sends_of([send] * (n - 1))))
    assert time_s(rung, tasks) == pytest.approx(block + (n - 1) * max(block, send), **CLOSE)
    assert {task.stream for task in tasks if isinstance(task, Exchange)} == {CONTEXT}


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=40, deadline=None)
@given(block=st.lists(st.floats(0.1, 4), min_size=2, max_size=6), data=st.data())
def test_the_gradients_ring_takes_the_longer_of_block_and_send_at_each_step(
    rung: object, block: list[float], data: st.DataObject
) -> None:
    send = [data.draw(st.floats(0.1, 4)) for _ in block]
    tasks = list(order.gradient_ring(blocks_of(block), sends_of(send)))
    assert time_s(rung, tasks) == pytest.approx(sum(map(max, block, send)), **CLOSE)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize(("block", "send"), [(3.0, 2.0), (2.0, 3.0)])
def test_a_token_ring_waits_for_its_last_outputs(rung: object, n: int, block: float, send: float) -> None:
    sends: list[Exchange | None] = list(sends_of([send] * (n + 1)))
    [merge] = blocks_of([0.5])
    tasks = list(order.token_ring(blocks_of([block] * n), sends, merge))
    assert time_s(rung, tasks) == pytest.approx(n * max(block, send) + send + 0.5, **CLOSE)


@pytest.mark.parametrize("kind", ["ring", "gradient_ring", "token_ring"])
def test_every_task_can_change_the_attention(kind: str) -> None:
    n, of_blocks, of_sends = 3, [1.0] * 3, [1.0] * {"ring": 2, "gradient_ring": 3, "token_ring": 4}[kind]

    def took(blocks: list[float], sends: list[float]) -> float:
        more = blocks_of([0.5]) if kind == "token_ring" else []
        return time_s(RUNGS[0], list(getattr(order, kind)(blocks_of(blocks), sends_of(sends), *more)))

    for at in range(n):
        longer = [9.0 if i == at else s for i, s in enumerate(of_blocks)]
        assert took(longer, of_sends) > took(of_blocks, of_sends)
    for at in range(len(of_sends)):
        longer = [9.0 if i == at else s for i, s in enumerate(of_sends)]
        assert took(of_blocks, longer) > took(of_blocks, of_sends)


# In a step


def parts_of(forward: ForwardPass, layer: int = 0) -> list[Compute | Exchange]:
    return list(settled(forward.attention(layer)))


def alone_s(forward: ForwardPass, task: Compute | Exchange) -> float:
    return float(find_rung("fluid").run(forward.program([replace(task, stream="x", after=())])).step_time_s)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize(("cp", "length"), [(2, 64), (4, 512), (8, 65536)])
def test_a_layer_of_ring_attention_on_even_work(rung: object, cp: int, length: int) -> None:
    """Projections, the first block, and at each further step what is longer, block or exchange, and what is behind."""
    forward = forward_of(plan_of(cp=cp), even_step(plan_of(cp=cp), length=length))
    tasks = parts_of(forward)
    into, *core, behind = tasks
    blocks = [alone_s(forward, task) for task in core if isinstance(task, Compute)]
    sends = [alone_s(forward, task) for task in core if isinstance(task, Exchange)]
    assert (len(blocks), len(sends)) == (cp, cp - 1)
    ends = alone_s(forward, into) + blocks[0] + alone_s(forward, behind)
    sent, done = 0.0, blocks[0]
    for block, send in zip(blocks[1:], sends, strict=True):
        sent += send
        done = max(done, sent) + block
    whole = ends - blocks[0] + done
    assert float(rung.run(forward.program(tasks)).step_time_s) == pytest.approx(whole, **CLOSE)
    if min(blocks[1:]) >= max(sends):  # nothing is waited for: blocks follow one another
        assert whole == pytest.approx(ends + sum(blocks[1:]), **CLOSE)
    if max(blocks) <= min(sends):
        assert whole == pytest.approx(ends + sum(sends) + blocks[-1] - blocks[0], **CLOSE)


def bytes_out(tasks: list[Compute | Exchange]) -> np.ndarray:
    """Bytes that leave each GPU over NVLink and its NIC, by the tasks' flows."""
    sent_G = np.zeros(16)
    for task in tasks:
        if isinstance(task, Exchange):
            flows = task.fill()
            away = flows.source_rank_F != flows.destination_rank_F
            np.add.at(sent_G, flows.source_rank_F[away], flows.bytes_F[away])
    return sent_G


@pytest.mark.parametrize("cp", [2, 4, 8])
def test_what_is_sent_for_a_layers_attention(cp: int) -> None:
    """A ring and an all-gather send a rank's keys n - 1 times; queries are half of keys and values of all heads."""
    plan, length = plan_of(cp=cp), 2 * cp * 8
    step, unit = even_step(plan, length=length), sizes.cached_bytes(MODEL, MODEL.attention)
    own = length / cp
    for exchange in ("ring", "all-gather"):
        forward = forward_of(plan.with_(context_exchange=exchange), step)
        np.testing.assert_allclose(bytes_out(parts_of(forward)), (cp - 1) * own * unit, rtol=1e-9)
    many = replace(MODEL, attention=replace(MODEL.attention, kind="mha", kv_heads=8))
    kv, query = sizes.cached_bytes(many, many.attention), sizes.query_bytes(many.attention)
    assert query == kv / 2
    around = SharedContext.of(plan, step)
    to_next = around.rings.passed_on(around.new_RC, 0) * query
    keys_too = around.rings.passed_on(around.keys().held_RC, 0) * kv
    np.testing.assert_allclose(to_next, keys_too / 2)
    token_ring = forward_of(plan.with_(context_exchange="token-ring"), step)
    queries, outputs = sizes.query_bytes(MODEL.attention), sizes.output_bytes(MODEL.attention)
    before = np.tile(np.arange(cp), 16 // cp)
    back = own * ((cp - 1 - before) + before / 2)  # all queries of ranks behind, half of those of ranks before
    np.testing.assert_allclose(bytes_out(parts_of(token_ring)), (cp - 1) * own * queries + back * outputs, rtol=1e-9)


def test_decode_gathers_queries_and_reads_a_part_of_each_cache() -> None:
    plan, cp = plan_of(cp=4), 4
    step = random_step(np.random.default_rng(1), TRACE, ranks=plan.dp, tokens=64, phase="decode")
    forward = forward_of(plan, step)
    own_G = forward.attended_at(0)
    into, queries, core, outputs, merge, behind = parts_of(forward)
    assert [type(task) for task in (into, queries, core, outputs, merge, behind)] == [
        Compute,
        Exchange,
        Compute,
        Exchange,
        Compute,
        Compute,
    ]
    np.testing.assert_allclose(bytes_out([queries]), own_G * (cp - 1) * sizes.query_bytes(MODEL.attention), rtol=1e-9)
    others_G = own_G[plan.layout.peers_of_ranks("cp")].sum(axis=1) - own_G
    np.testing.assert_allclose(bytes_out([outputs]), others_G * sizes.output_bytes(MODEL.attention), rtol=1e-9)
    assert len({float(s) for s in core.seconds_R[:cp]}) == 1  # all that share sequences attend alike


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(("cp", "tp", "ep", "groups"), [(2, 1, 16, 1), (4, 2, 8, 2), (16, 1, 4, 4)])
def test_the_bound_is_below_fluid(phase: str, exchange: str, cp: int, tp: int, ep: int, groups: int) -> None:
    plan = plan_of(cp=cp, tp=tp, ep=ep, groups=groups, context_exchange=exchange)
    step = random_step(np.random.default_rng(2), TRACE, ranks=plan.dp, tokens=300, phase=phase)
    program = step_program(CLUSTER, MODEL, plan, TRACE, step)
    low, high = (rung.run(program) for rung in RUNGS)
    for before, after in zip(low.leave_S, high.leave_S, strict=True):
        assert (before <= after * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("schedule", ["sequential", "two-batch", "chunked:2"])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_schedules_lay_blocks_and_exchanges_in_order(schedule: str, exchange: str) -> None:
    plan = plan_of(cp=4, context_exchange=exchange, schedule=schedule)
    forward = forward_of(plan, even_step(plan, length=64))
    program: StepProgram = program_of(forward)
    assert all(task.behind is None and max(task.after, default=-1) < at for at, task in enumerate(program.tasks))
    assert (CONTEXT in program.streams) == (exchange != "all-gather")
    for rung in RUNGS:
        assert rung.run(program).step_time_s > 0


def test_uneven_sequences_in_rings_of_two_sizes() -> None:
    """Whole ones are sent nowhere, those of a domain stay inside it, and all that is held goes to all who read it."""
    plan = plan_of(cp=16, ep=16, context_split="zeppelin")
    lengths = [2200, 500, 450, *[60] * 10]
    step = Step(
        token_T=np.arange(sum(lengths)) % TRACE.n_tokens,
        source_T=np.zeros(sum(lengths), np.int32),
        context_T=np.concatenate([np.arange(n) + 1 for n in lengths]),
        phase="prefill",
    )
    forward = forward_of(plan, step)
    shared = forward.shared
    assert shared is not None
    assert set(shared.split.level_T.tolist()) == {WHOLE, NEAR, ALL}
    keys, rings = shared.keys(), shared.rings
    steps = rings.steps(keys.held_RC)
    read = sum(rings.read_at(keys.keys_RCN, step).sum(axis=0) for step in range(steps))
    assert read.sum() == pytest.approx(sum(n * (n + 1) / 2 for n in lengths), rel=1e-12)
    unit = sizes.cached_bytes(MODEL, MODEL.attention)
    sent = bytes_out(parts_of(forward)).sum()
    near = np.count_nonzero(shared.split.level_T == NEAR) * 7 * unit
    far = np.count_nonzero(shared.split.level_T == ALL) * 15 * unit
    assert sent == pytest.approx(near + far, rel=1e-9)


# What is refused


@pytest.mark.parametrize(
    ("changes", "phase", "said"),
    [
        ({"context_split": "zeppelin", "context_exchange": "all-gather"}, "prefill", "context_split.*rings only"),
        ({"dispatch": "stay"}, "prefill", "cp.*cannot share sequences"),
        ({"context_exchange": "token-ring"}, "train", "context_exchange.*no backward pass"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, str], phase: str, said: str) -> None:
    plan = plan_of(cp=4, **changes)
    with pytest.raises(MoecastError, match=said):  # noqa: PT012  the one or the other refuses it
        check_simulated(plan)
        check_context(plan, MODEL, phase)


def test_layers_that_cannot_share_sequences_are_refused() -> None:
    state = LinearAttention(kind="kda", heads=8, key_dim=16, value_dim=16, projections=((256, 256), (256, 256)))
    linear = replace(MODEL, more_attention=(state,), mixer_of_layer=(1,) * MODEL.n_layers)
    with pytest.raises(MoecastError, match=r"cp.*linear attention"):
        PlacedModel.of(CLUSTER, linear, plan_of(cp=2), phase="prefill")
    chosen = replace(MODEL, attention=replace(MODEL.attention, sparse_keys=64, index_heads=4, index_dim=32))
    with pytest.raises(MoecastError, match=r"context_exchange.*all-gather only"):
        PlacedModel.of(CLUSTER, chosen, plan_of(cp=2), phase="prefill")
    PlacedModel.of(CLUSTER, chosen, plan_of(cp=2, context_exchange="all-gather"), phase="prefill")


def test_a_mixed_step_is_refused() -> None:
    plan, rng = plan_of(cp=2), np.random.default_rng(3)
    prefill, decode = (random_step(rng, TRACE, ranks=plan.dp, tokens=20, phase=of) for of in ("prefill", "decode"))
    with pytest.raises(MoecastError, match=r"cp.*at once"):
        forward_of(plan, prefill.beside(decode))


@pytest.mark.parametrize("field", ["context_exchange", "context_split"])
def test_names_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} = 'none': one of"):
        plan_of(cp=2, **{field: "none"})


def test_a_plan_keeps_how_it_shares_sequences() -> None:
    plan = plan_of(cp=2, context_exchange="all-gather", context_split="contiguous")
    again = Plan.from_json(plan.to_json())
    assert (again.cp, again.context_exchange, again.context_split) == (2, "all-gather", "contiguous")
