"""Traffic against plain Python on generated traces and plans, for every replica rule and both ways home."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim import Plan, Sites, count_traffic
from moecast.sim.slots import EMPTY
from moecast.topology import load_cluster
from moecast.traces import NO_CHOICE, contiguous_ranks_LE, import_npz, trace_stats
from tests.sim.plan_cases import Question, questions, shares

GOLDEN = 0.6180339887498949


def serving_slots(question: Question, layer: int, group: int, expert: int, source: int) -> list[tuple[int, float]]:
    """(slot of the EP group, weight) of each candidate, in the order in which a source takes them."""
    plan, domain = question.plan, question.cluster.domain_of_gpu_G
    weights = plan.replica_weights_DLGP
    candidates = []
    for member in range(plan.ep):
        for slot in range(plan.max_slots):
            if plan.slots_DLGP[group, layer, member, slot] == expert:
                weight = 1.0 if weights is None else weights[group, layer, member, slot]
                candidates.append((member * plan.max_slots + slot, weight))
    if plan.replica_rule == "by_rank":
        last_of_rank = {slot // plan.max_slots: (slot, weight) for slot, weight in candidates}
        return [list(last_of_rank.values())[source % plan.ep % len(last_of_rank)]]
    if plan.replica_rule == "fixed":
        return [fixed(question, layer, group, expert, candidates, source)]
    if plan.replica_rule == "nearest":

        def closeness(slot: int) -> int:
            rank = group * plan.ep + slot // plan.max_slots
            same_domain = domain[plan.gpu_of_rank[rank]] == domain[plan.gpu_of_rank[source]]
            return int(rank == source) + int(same_domain)

        nearest = max(closeness(slot) for slot, _ in candidates)
        candidates = [(slot, weight) for slot, weight in candidates if closeness(slot) == nearest]
    return candidates


def fixed(
    question: Question, layer: int, group: int, expert: int, candidates: list[tuple[int, float]], source: int
) -> tuple[int, float]:
    """The one replica that a source always takes: rank by rank, as docs/design.md tells it."""
    plan, node = question.plan, question.cluster.node_of_gpu_G
    dealt = layer * plan.experts + expert
    for rank in range(group * plan.ep, source + 1):
        ranks = [group * plan.ep + slot // plan.max_slots for slot, _ in candidates]
        own = [at for at, held in enumerate(ranks) if held == rank]
        here = node[plan.gpu_of_rank[rank]]
        near = [at for at, held in enumerate(ranks) if node[plan.gpu_of_rank[held]] == here]
        if own:
            taken = own[0]
        elif 0 < len(near) < len(ranks):
            taken = near[0]
        else:
            taken = dealt % len(ranks)
            dealt += 1
    return candidates[taken]


def pick(rule: str, candidates: list[tuple[int, float]], i: int, source: int) -> int:
    if rule != "weights":
        return candidates[(i + source) % len(candidates)][0]
    total = sum(weight for _, weight in candidates)
    shares = [weight / total if total else 1 / len(candidates) for _, weight in candidates]
    point = (i + source + 0.5) * GOLDEN % 1
    for (slot, _), reached, share in zip(candidates, np.cumsum(shares), shares, strict=True):
        if point < reached and share:
            return slot
    return [slot for (slot, _), share in zip(candidates, shares, strict=True) if share][-1]


def by_hand(question: Question, *, stay: bool) -> list[dict[str, Counter]]:
    """Traffic of each layer, token by token."""
    plan, trace, step = question.plan, question.trace, question.step
    domain_of = [int(question.cluster.domain_of_gpu_G[gpu]) for gpu in plan.gpu_of_rank]
    taken: Counter = Counter()
    layers: list[dict[str, Counter]] = [defaultdict(Counter) for _ in range(plan.layers)]
    for token, source in zip(step.token_T, step.source_T, strict=True):
        home = int(source)
        before: list[int] = []
        for layer, counts in enumerate(layers):
            group = home // plan.ep
            ranks = []
            for expert in trace.experts_TLK[token, layer].tolist():
                if expert == NO_CHOICE:
                    continue
                candidates = serving_slots(question, layer, group, expert, home)
                slot = pick(plan.replica_rule, candidates, taken[home, layer, expert], home)
                taken[home, layer, expert] += 1
                rank = group * plan.ep + slot // plan.max_slots
                counts["load"][rank, slot % plan.max_slots] += 1
                counts["choices"][home, rank] += 1
                ranks.append(rank)
            counts["tokens"][home,] += 1
            counts["pairs"]["all"] += len(ranks) * len(before)
            counts["pairs"]["same"] += sum(a == b for a in ranks for b in before)
            before = ranks
            for rank in set(ranks):
                counts["copies"][home, rank] += 1
            for domain in {domain_of[rank] for rank in ranks}:
                counts["domain copies"][home, domain] += 1
            taker, sent = home, set(ranks)
            if stay:
                taker, sent = (ranks[0] if ranks else home), sent | {home}
            for rank in sent:
                counts["return"][taker, rank] += 1
            for domain in {domain_of[rank] for rank in sent}:
                counts["domain return"][taker, domain] += 1
            home = taker
    return layers


def dense(counts: Counter, shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, np.int64)
    for index, count in counts.items():
        array[index] = count
    return array


def traffic_of(question: Question, *, stay: bool):
    layout = Sites.of(question.cluster, question.plan)
    step = question.step
    return count_traffic(
        question.plan, layout, question.trace.experts_TLK, step.token_T, step.source_T, stay=stay
    ), layout


@settings(max_examples=120, deadline=None)
@given(questions(), st.booleans())
def test_counts_equal_plain_python(question: Question, stay: bool) -> None:
    traffic, layout = traffic_of(question, stay=stay)
    ranks, domains = layout.n_ranks, layout.cluster.n_domains
    expected = by_hand(question, stay=stay)
    for index, counts in enumerate(expected):
        layer = traffic.layer(index)
        np.testing.assert_array_equal(layer.tokens_G, dense(counts["tokens"], (ranks,)))
        np.testing.assert_array_equal(layout.to_ranks(layer.choices_SM), dense(counts["choices"], (ranks, ranks)))
        np.testing.assert_array_equal(layout.to_ranks(layer.copies_SM), dense(counts["copies"], (ranks, ranks)))
        np.testing.assert_array_equal(
            layout.to_domains(layer.domain_copies_SA), dense(counts["domain copies"], (ranks, domains))
        )
        np.testing.assert_array_equal(layer.load_GP, dense(counts["load"], (ranks, question.plan.max_slots)))
        np.testing.assert_array_equal(layout.to_ranks(layer.return_copies_SM), dense(counts["return"], (ranks, ranks)))
        np.testing.assert_array_equal(
            layout.to_domains(layer.return_domain_copies_SA), dense(counts["domain return"], (ranks, domains))
        )
    assert traffic.pairs == sum(counts["pairs"]["all"] for counts in expected)
    assert traffic.same_rank_pairs == sum(counts["pairs"]["same"] for counts in expected)


@settings(max_examples=80, deadline=None)
@given(questions(), st.booleans())
def test_every_valid_choice_is_served_once(question: Question, stay: bool) -> None:
    """Invariant 1, and the loads of an expert's slots add up to its choices."""
    traffic, layout = traffic_of(question, stay=stay)
    plan, chosen_TLK = question.plan, question.trace.experts_TLK[question.step.token_T]
    for index in range(plan.layers):
        layer = traffic.layer(index)
        valid = chosen_TLK[:, index][chosen_TLK[:, index] != NO_CHOICE]
        assert layer.load_GP.sum() == layout.to_ranks(layer.choices_SM).sum() == len(valid)
        np.testing.assert_array_equal(layer.load_GP.sum(1), layout.to_ranks(layer.choices_SM).sum(0))
        slots_GP = plan.slots_DLGP[:, index].reshape(layout.n_ranks, plan.max_slots)
        assert not layer.load_GP[slots_GP == EMPTY].any()
        served_E = np.bincount(slots_GP[slots_GP != EMPTY], layer.load_GP[slots_GP != EMPTY], plan.experts)
        np.testing.assert_array_equal(served_E, np.bincount(valid, minlength=plan.experts))
        assert not layout.to_ranks(layer.choices_SM)[layout.group_G[:, None] != layout.group_G[None, :]].any()
        assert (layout.to_ranks(layer.copies_SM) <= layout.to_ranks(layer.choices_SM)).all()
        assert layer.tokens_G.sum() == question.step.n_tokens


@settings(max_examples=60, deadline=None)
@given(questions(), st.booleans(), st.integers(0, 2**31))
def test_an_idle_replica_changes_no_count(question: Question, stay: bool, seed: int) -> None:
    """Plans without replicas are counted by a loop of their own; a replica nobody chooses sends them to the other."""
    plan, cluster = question.plan, question.cluster
    experts = plan.experts + 1  # the last one is never chosen
    rng = np.random.default_rng(seed)
    homes = np.stack([rng.permutation(experts) for _ in range(plan.groups * plan.layers)])
    per_rank = -(-experts // plan.ep)
    alone = np.full((plan.groups, plan.layers, plan.ep, per_rank + 1), EMPTY, np.int32)
    padded = np.pad(homes, ((0, 0), (0, plan.ep * per_rank - experts)), constant_values=EMPTY)
    alone[..., :per_rank] = padded.reshape(plan.groups, plan.layers, plan.ep, per_rank)
    twice = alone.copy()
    twice[:, :, 0, per_rank] = experts - 1
    counted = []
    for slots in (alone, twice):
        weights = None if plan.replica_weights_DLGP is None else shares(np.ones(slots.shape), slots)
        asked = plan.with_(experts=experts, slots_DLGP=slots, replica_weights_DLGP=weights)
        layout = Sites.of(cluster, asked)
        step = question.step
        counted.append(count_traffic(asked, layout, question.trace.experts_TLK, step.token_T, step.source_T, stay=stay))
    for field in fields(counted[0]):
        np.testing.assert_array_equal(*(getattr(traffic, field.name) for traffic in counted), err_msg=field.name)


@pytest.mark.parametrize("extra", [0, 1])
def test_threads_change_no_count(monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    """Sources are shared out to threads; more threads than sources, and more than 64 ranks, are fine."""
    monkeypatch.setattr("moecast.sim.traffic._MIN_PART", 64)
    rng = np.random.default_rng(extra)
    slots_GP = np.stack([np.arange(72), *rng.integers(0, 72, (extra, 72))], axis=1).astype(np.int32)
    plan = Plan(
        experts=72,
        choices=3,
        layer_ids=(0, 1, 2),
        slots_DLGP=np.tile(slots_GP, (1, 3, 1, 1)),
        gpu_of_rank=tuple(range(72)),
    )
    layout = Sites.of(load_cluster("dgx-h200", nodes=9), plan)
    experts_TLK = rng.permuted(np.tile(np.arange(72, dtype=np.uint16), (500, 3, 1)), axis=2)[:, :, :3].copy()
    experts_TLK[rng.random(experts_TLK.shape) < 0.1] = NO_CHOICE
    home_T = rng.integers(0, 72, 500).astype(np.int32)
    counted = []
    for threads in (1, 2, 100):
        monkeypatch.setenv("MOECAST_THREADS", str(threads))
        counted.append(count_traffic(plan, layout, experts_TLK, np.arange(500), home_T))
    for field, threaded in itertools.product(fields(counted[0]), counted[1:]):
        np.testing.assert_array_equal(getattr(counted[0], field.name), getattr(threaded, field.name))


@settings(max_examples=40, deadline=None)
@given(questions(rules=("round_robin",)), st.integers(0, 2**31))
def test_renaming_experts_changes_nothing(question: Question, seed: int) -> None:
    """Invariant 9 for traffic: names of experts do not matter, slots keep their places."""
    new_E = np.random.default_rng(seed).permutation(question.plan.experts)
    names = np.append(new_E, EMPTY)
    slots = names[question.plan.slots_DLGP].astype(np.int32)
    table = np.full(NO_CHOICE + 1, NO_CHOICE, np.uint16)
    table[: len(new_E)] = new_E
    renamed = replace(
        question,
        plan=question.plan.with_(slots_DLGP=slots),
        trace=replace(question.trace, experts_TLK=table[question.trace.experts_TLK]),
    )
    one, two = traffic_of(question, stay=False)[0], traffic_of(renamed, stay=False)[0]
    np.testing.assert_array_equal(one.choices_LSM, two.choices_LSM)
    np.testing.assert_array_equal(one.copies_LSM, two.copies_LSM)
    np.testing.assert_array_equal(one.load_LGP, two.load_LGP)


def replicated(rule: str, weights: np.ndarray | None = None) -> Plan:
    """Expert 0 on all 4 ranks, experts 1 to 4 once each."""
    slots = np.array([[0, 1], [0, 2], [0, 3], [0, 4]], np.int32)[None, None]
    return Plan(
        experts=5,
        choices=1,
        layer_ids=(0,),
        slots_DLGP=slots,
        gpu_of_rank=(0, 1, 8, 9),
        replica_rule=rule,
        replica_weights_DLGP=weights,
    )


def loads(plan: Plan, home_T: list[int]) -> list[int]:
    layout = Sites.of(load_cluster("dgx-h200", nodes=2), plan)
    experts = np.zeros((1, 1, 1), np.uint16)
    traffic = count_traffic(plan, layout, experts, np.zeros(len(home_T), np.int64), np.array(home_T, np.int32))
    return traffic.load_LGP[0, :, 0].tolist()


def test_round_robin_starts_at_the_source() -> None:
    assert loads(replicated("round_robin"), [1]) == [0, 1, 0, 0]
    assert loads(replicated("round_robin"), [1, 1, 1]) == [0, 1, 1, 1]
    assert loads(replicated("round_robin"), [0, 1, 2, 3]) == [1, 1, 1, 1]


def test_nearest_takes_own_rank_then_own_domain() -> None:
    assert loads(replicated("nearest"), [2] * 5) == [0, 0, 5, 0]
    without_own = replicated("nearest").slots_DLGP.copy()
    without_own[0, 0, 2, 0] = EMPTY
    assert loads(replicated("nearest").with_(slots_DLGP=without_own), [2] * 5) == [0, 0, 0, 5]


def test_weights_share_any_run_of_choices() -> None:
    """A low-discrepancy sequence: 100 choices are within 3 of their shares."""
    weights = np.zeros((1, 1, 4, 2))
    weights[0, 0, :, 0] = [0.1, 0.2, 0.3, 0.4]
    got = loads(replicated("weights", weights), [0] * 100)
    assert max(abs(a - b) for a, b in zip(got, [10, 20, 30, 40], strict=True)) <= 3


def test_weights_of_zero_are_never_taken_unless_all_are() -> None:
    weights = np.zeros((1, 1, 4, 2))
    assert loads(replicated("weights", weights), [0] * 8) == [2, 2, 2, 2]
    weights[0, 0, 1, 0] = 1
    assert loads(replicated("weights", weights), [0] * 8) == [0, 8, 0, 0]


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        (None, "rule weights needs them"),
        (np.zeros((1, 1, 1, 1)), "shape"),
        (np.full((1, 1, 4, 2), -1.0), "not negative"),
        (np.full((1, 1, 4, 2), np.nan), "finite"),
        (np.full((1, 1, 4, 2), 0.5), "expert 0 at layer 0 of EP group 0 must sum to 1"),
    ],
)
def test_bad_weights_are_refused(weights: np.ndarray | None, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        loads(replicated("weights", weights), [0])


def test_arrays_that_do_not_fit_are_refused() -> None:
    plan = replicated("round_robin")
    layout = Sites.of(load_cluster("dgx-h200", nodes=2), plan)
    with pytest.raises(ValueError, match=r"home_T: shape \[1\], must be \[2\]"):
        count_traffic(plan, layout, np.zeros((1, 1, 1), np.uint16), np.zeros(2, np.int64), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="L, K"):
        count_traffic(plan, layout, np.zeros((1, 2, 1), np.uint16), np.zeros(1, np.int64), np.zeros(1, np.int32))
    missing = plan.slots_DLGP.copy()
    missing[0, 0, 3, 1] = EMPTY
    with pytest.raises(ValueError, match="no slot for expert 4"):
        loads(plan.with_(slots_DLGP=missing), [0])


def test_shared_trace_agrees_with_the_trace_statistics(shared_traces) -> None:  # type: ignore[no-untyped-def]
    """Fan-out, balance and crossings of the contiguous plan on 8 ranks, counted by another package."""
    trace = import_npz(shared_traces / "deepseek-v2-lite.npz", model="deepseek-v2-lite").split(0.5)[1]
    plan = Plan.contiguous(layers=26, experts=64, choices=6, ep=8)
    layout = Sites.of(load_cluster("dgx-h200"), plan)
    home_T = np.arange(trace.n_tokens) % 8
    traffic = count_traffic(plan, layout, trace.experts_TLK, np.arange(trace.n_tokens), home_T.astype(np.int32))
    expected = trace_stats(trace, rank_of_expert_LE=contiguous_ranks_LE(trace.meta, 8))
    load_LG = traffic.rank_load_LG
    assert (load_LG.mean(1) / load_LG.max(1)).mean() == pytest.approx(expected.balance_pooled, abs=1e-12)
    assert traffic.copies_LSM.sum() / trace.n_tokens / 26 == pytest.approx(expected.fan_out, abs=1e-12)
    assert 1 - traffic.same_rank_pairs / traffic.pairs == pytest.approx(expected.crossings, abs=1e-12)
    assert expected.balance_pooled == pytest.approx(0.795, abs=5e-4)
    assert expected.fan_out == pytest.approx(4.552, abs=5e-4)
