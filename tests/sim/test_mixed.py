"""Prefill chunks beside decode in one step, and drafts that a step verifies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Plan, Step, Workload, draw_steps, simulate, simulate_step
from moecast.topology import load_cluster
from moecast.traces import PHASES, RoutingTrace, concatenate
from tests.sim.plan_cases import small_trace, tiny_model
from tests.strategies import traces

CLUSTER = load_cluster("dgx-h100")
NOBODY = np.zeros(0, np.int64)


def with_phases(trace: RoutingTrace) -> RoutingTrace:
    """The trace once as prompts and once as answers, in sequences of their own."""
    first = int(trace.sequence_T.max()) + 1
    parts = [
        replace(
            trace,
            phase_T=np.full(trace.n_tokens, PHASES.index(phase), np.uint8),
            sequence_T=(trace.sequence_T + np.uint32(more)).astype(np.uint32),
        )
        for phase, more in (("prefill", 0), ("decode", first))
    ]
    return concatenate(parts)


@st.composite
def questions(draw: st.DrawFn) -> tuple[RoutingTrace, Workload]:
    trace = with_phases(draw(traces(layers=(1, 2), tokens=(1, 20))))
    workload = Workload(
        phase="mixed",
        tokens_per_rank=draw(st.integers(1, 4)),
        prefill_tokens_per_rank=draw(st.integers(1, 12)),
        steps=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 9)),
        reuse=True,
    )
    return trace, workload


def plan_of(trace: RoutingTrace, ranks: int = 2) -> Plan:
    sizes = trace.meta
    return Plan.contiguous(layers=sizes.layers, experts=sizes.experts, choices=sizes.choices, ep=ranks)


def seconds(trace: RoutingTrace, step: Step, mode: str = "per_rank") -> float:
    plan = plan_of(trace).with_(dispatch=mode)
    model = tiny_model(trace, dense_layers=0)
    return simulate_step(CLUSTER, model, plan, trace, step, network="bound")[1].step_time_s


@settings(max_examples=25, deadline=None)
@given(questions())
def test_a_mixed_step_has_the_tokens_of_both_parts(question: tuple[RoutingTrace, Workload]) -> None:
    trace, workload = question
    prefill, decode = (draw_steps(trace, part, ranks=2) for part in workload.parts)
    for mixed, one, other in zip(draw_steps(trace, workload, ranks=2), prefill, decode, strict=True):
        assert mixed.phase == "mixed"
        assert sorted(mixed.token_T.tolist()) == sorted([*one.token_T.tolist(), *other.token_T.tolist()])
        assert mixed.decode_T is not None
        assert sorted(mixed.token_T[mixed.decode_T].tolist()) == sorted(other.token_T.tolist())
        for name in ("tokens_G", "context_sum_G", "sequences_G", "held_G", "logits_G"):
            np.testing.assert_array_equal(getattr(mixed, name)(2), getattr(one, name)(2) + getattr(other, name)(2))


@settings(max_examples=25, deadline=None)
@given(questions())
def test_a_mixed_step_takes_longer_than_either_part_and_no_longer_than_both(
    question: tuple[RoutingTrace, Workload],
) -> None:
    """The same kernels for all three: decode by its low-latency ones is another question."""
    trace, workload = question
    prefill, decode = (draw_steps(trace, part, ranks=2)[0] for part in workload.parts)
    together = seconds(trace, prefill.beside(decode))
    assert together >= seconds(trace, prefill) * (1 - 1e-9)
    beside_nothing = replace(decode, phase="mixed", decode_T=np.ones(decode.n_tokens, bool))
    assert together <= (seconds(trace, prefill) + seconds(trace, beside_nothing)) * (1 + 1e-9)


@settings(max_examples=10, deadline=None)
@given(questions())
def test_an_empty_part_changes_nothing(question: tuple[RoutingTrace, Workload]) -> None:
    trace, workload = question
    model, plan = tiny_model(trace, dense_layers=0), plan_of(trace)

    def answer(asked: Workload) -> dict[str, object]:
        value = simulate(CLUSTER, model, plan, trace, asked, network="bound", gains=False).to_json()
        names = ("step_times_s", "breakdown_s", "tokens_per_s", "memory_bytes", "fan_out")
        return {name: value[name] for name in names}

    prefill, decode = workload.parts
    assert answer(replace(workload, tokens_per_rank=0)) == answer(prefill)
    assert answer(replace(workload, prefill_tokens_per_rank=0)) == answer(decode)


@settings(max_examples=15, deadline=None)
@given(questions(), st.integers(0, 5), st.floats(0.0, 1.0))
def test_drafts_are_verified_together_and_count_as_accepted(
    question: tuple[RoutingTrace, Workload], drafts: int, acceptance: float
) -> None:
    trace, workload = question
    _, decode = workload.parts
    asked = replace(decode, speculate=drafts, acceptance=acceptance if drafts else 0.0)
    [plain, *_], [step, *_] = (draw_steps(trace, each, ranks=2) for each in (decode, asked))
    assert step.n_tokens == (drafts + 1) * plain.n_tokens
    np.testing.assert_array_equal(step.sequences_G(2), plain.sequences_G(2))
    np.testing.assert_array_equal(step.context_T.reshape(-1, drafts + 1)[:, 0], plain.context_T)
    a, k = asked.acceptance, drafts
    expected = k + 1 if a == 1 else (1 - a ** (k + 1)) / (1 - a)
    assert asked.accepted_per_step == pytest.approx(expected, rel=1e-9)
    assert asked.tokens_done(step) == pytest.approx(plain.n_tokens * expected, rel=1e-9)
    assert seconds(trace, step) >= seconds(trace, plain) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("decodes", "phase", "kernels", "readers"),
    [
        ([False] * 4, "prefill", "prefill", [1.0]),
        ([True] * 4, "decode", "decode", [2.0]),
        ([False, False, True, True], "mixed", "prefill", [1.0, 2.0]),
    ],
)
def test_tokens_of_parts_make_a_step_of_their_phase(
    decodes: list[bool], phase: str, kernels: str, readers: list[float]
) -> None:
    decode_T, end_T = np.array(decodes), np.array([False, True, False, True])
    token_T, source_T, context_T = np.arange(4), np.zeros(4, np.int32), np.array([1, 2, 7, 8])
    step = Step.of_tokens(
        token_T=token_T, source_T=source_T, context_T=context_T, decode_T=decode_T, wanted_T=end_T, end_T=end_T
    )
    assert (step.phase, step.kernels, step.decodes_only) == (phase, kernels, phase == "decode")
    assert [part.readers(2.0) for part, _ in step.parts] == readers
    covered = [np.ones(4, bool) if of_T is None else of_T for _, of_T in step.parts]
    assert (np.sum(covered, axis=0) == 1).all()
    assert step.logits_G(1).tolist() == [4 if phase == "decode" else 2]


def test_parts_of_a_mixed_workload_go_back_into_it() -> None:
    mixed = Workload(phase="mixed", tokens_per_rank=2, prefill_tokens_per_rank=6, context=9, speculate=1)
    prompts, running = mixed.parts
    assert (prompts.tokens_per_rank, prompts.context, prompts.speculate) == (6, None, 0)
    assert (running, mixed.kernels) == (mixed.decoding, "prefill")
    assert mixed.with_parts(mixed.parts) == mixed
    for one in mixed.parts:
        assert one.with_parts(one.parts) == one
    assert (prompts.latency_kind, mixed.latency_kind) == ("time to first token", "inter-token latency")


def test_a_mixed_step_says_that_tokens_per_second_count_prompts() -> None:
    trace = with_phases(small_trace())
    mixed = Workload(phase="mixed", tokens_per_rank=2, prefill_tokens_per_rank=6, steps=1, reuse=True)
    said = "tokens/s counts prompts, too: 6 of their tokens a step and rank, beside 2 sequences that decode"
    for workload, told in ((mixed, True), (mixed.parts[1], False), (replace(mixed, prefill_tokens_per_rank=0), False)):
        model = tiny_model(trace)
        found = simulate(CLUSTER, model, plan_of(trace), trace, workload, network="bound", gains=False)
        assert (said in found.warnings) == told
    counted = simulate(CLUSTER, model, plan_of(trace), trace, mixed, network="bound", gains=False)
    assert counted.tokens_per_s * counted.step_time_s == pytest.approx(2 * (2 + 6))


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"phase": "prefill", "prefill_tokens_per_rank": 4}, "prefill_tokens_per_rank = 4"),
        ({"phase": "prefill", "speculate": 2}, "speculate = 2"),
        ({"phase": "decode", "speculate": 65}, "at most 64 drafts"),
        ({"phase": "decode", "acceptance": 0.5}, "acceptance = 0.5"),
        ({"phase": "decode", "speculate": 2, "acceptance": 1.5}, "acceptance = 1.5: a chance, from 0 to 1"),
        ({"phase": "decode", "acceptance": 0.5}, "acceptance = 0.5: is of drafts, and there are none"),
        ({"phase": "mixed", "tokens_per_rank": 0}, "tokens_per_rank = 0"),
        ({"phase": "mixed", "steps_mode": "as-recorded"}, "phase = mixed: recorded steps are of one phase"),
    ],
)
def test_what_no_step_can_be_is_refused(wrong: dict[str, object], rule: str) -> None:
    with pytest.raises(MoecastError, match=rule):
        Workload(**{"tokens_per_rank": 4, **wrong})  # type: ignore[arg-type]
