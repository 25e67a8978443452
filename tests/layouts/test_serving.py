"""The search for a serving layout: floors below every rung, for any placement; pruning that brute force agrees with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.layouts import ServingLayout, ServingQuestion, Slo, Space, StepScores, find_serving, step_floors
from moecast.placement.layouts.abilities import ENGINES
from moecast.placement.layouts.fitting import fitting, memory_of
from moecast.placement.layouts.front import pareto
from moecast.placement.layouts.launch import launches
from moecast.placement.layouts.scoring import prefill_of
from moecast.placement.layouts.steady import apart, together
from moecast.sim import ModelShape, kernels_on
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.sim.memory import usable_bytes
from moecast.topology import load_cluster

MODEL = ModelShape(
    name="tiny",
    hidden=512,
    n_layers=4,
    moe_layer_ids=(1, 2, 3),
    experts=16,
    choices=4,
    expert_intermediate=256,
    shared_experts=1,
    shared_intermediate=256,
    dense_intermediate=1024,
    vocab=1000,
    attention=AttentionShape(kind="gqa", heads=8, kv_heads=4, head_dim=64, value_dim=64),
)


def question(
    law: str = "zipf:0.8", cluster: str = "dgx-h100", engine: str = "sglang", **kernels: str
) -> ServingQuestion:
    built = kernels_on(load_cluster(cluster, nodes=2), engine=engine, **kernels)
    trace = routing_by_law(parse_law(law), MODEL, tokens=512, sequence=32, phase="decode", position=0, seed=1)
    return ServingQuestion(cluster=built, model=MODEL, trace=trace, isl=256, osl=64)


QUESTIONS = [question(), question("uniform", engine="vllm"), question("zipf:1.5", kernels="roofline")]
LAYOUTS = list(Space(model=MODEL, gpus=16, batches=(1, 3, 8, 32), most_cp=2).layouts())
PROMPTS = sorted({prefill_of(layout, 256) for layout in LAYOUTS})


@settings(deadline=None, max_examples=60)
@given(asked=st.sampled_from(QUESTIONS), layout=st.sampled_from(LAYOUTS), rest=st.randoms(use_true_random=False))
def test_the_floor_is_below_bound_whatever_the_placement(
    asked: ServingQuestion, layout: ServingLayout, rest: object
) -> None:
    [floor_s] = step_floors(asked, [layout])
    plan = layout.plan(MODEL)
    assert 0 < floor_s <= StepScores(question=asked).step_s(layout, "decode")
    shuffled = plan.slots_DLGP.copy()
    order = list(range(MODEL.experts))
    rest.shuffle(order)  # type: ignore[attr-defined]
    shuffled = np.where(shuffled >= 0, np.array([*order, -1])[shuffled], -1).astype(np.int32)
    spare = np.argwhere(shuffled == -1)
    for group, layer, rank, slot in spare:  # a replica in every spare slot
        shuffled[group, layer, rank, slot] = order[(rank * 3 + layer) % MODEL.experts]
    assert floor_s <= StepScores(question=asked).step_s(layout, "decode", plan.with_(slots_DLGP=shuffled))


@settings(deadline=None, max_examples=40)
@given(asked=st.sampled_from(QUESTIONS), layout=st.sampled_from(PROMPTS))
def test_the_floor_of_prompts_is_below_bound(asked: ServingQuestion, layout: ServingLayout) -> None:
    [floor_s] = step_floors(asked, [layout], phase="prefill")
    assert 0 < floor_s <= StepScores(question=asked).step_s(layout, "prefill")


def test_floors_of_many_are_those_of_each() -> None:
    some = LAYOUTS[::97]
    together_s = step_floors(QUESTIONS[0], some)
    assert together_s == pytest.approx([step_floors(QUESTIONS[0], [one])[0] for one in some], rel=1e-12)


def test_every_layout_is_legal_and_stands_once_and_every_refusal_has_a_reason() -> None:
    space = Space(model=MODEL, gpus=8, batches=(2, 4))
    found = list(space.layouts())
    assert len(found) == len(set(found))
    for layout in found:
        plan = layout.plan(MODEL)
        plan.check_legal()
        assert plan.ranks == layout.gpus
        assert 8 % layout.gpus == 0
    assert sum(space.refused.values()) > 0
    assert all(reason for reason in space.refused)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_asked_for_what_it_has_options_for(engine: str) -> None:
    every = list(Space(model=MODEL, gpus=8, batches=(2, 4)).layouts())
    space = Space(model=MODEL, gpus=8, batches=(2, 4), engine=engine)
    startable = list(space.layouts())
    told = {layout: {one.engine: one.cannot for one in launches(layout, experts=MODEL.experts)} for layout in every}
    assert startable == [layout for layout in every if not told[layout][engine]]
    assert 0 < len(startable) < len(every)
    assert any(reason.startswith(f"{engine} has no option for") for reason in space.refused)
    asked = question(engine=engine)
    found = find_serving(asked, 2, Slo(), scored=4, placed=1, network="bound", modes=("agg",))
    assert found.legal == len(list(Space(model=MODEL, gpus=2, engine=engine).layouts()))


def test_what_does_not_fit_is_what_memory_says() -> None:
    asked = replace(QUESTIONS[0], memory_fraction=0.0004)
    some = LAYOUTS[::53]
    kept = set(fitting(asked, some, "decode").layouts)
    usable = usable_bytes(asked.cluster.hardware, asked.memory_fraction)
    assert kept == {one for one in some if sum(memory_of(asked, one, "decode").values()) <= usable}
    assert 0 < len(kept) < len(some)


def test_brute_force_finds_the_same_winner() -> None:
    asked = QUESTIONS[0]
    space = Space(
        model=MODEL,
        gpus=4,
        batches=(2, 16),
        most_pp=1,
        most_cp=1,
        schedules=("sequential",),
        spare_slots=(0,),
        dispatch=("per_choice",),
    )
    limits = Slo(tpot_s=0.004)
    found = find_serving(asked, 4, limits, space=space, scored=10_000, placed=10_000, network="bound", modes=("agg",))
    scores, best = StepScores(question=asked), 0.0
    for layout in space.layouts():
        prompts = prefill_of(layout, asked.isl)
        one = together(
            layout, prompts, scores.step_s(layout, "decode"), scores.step_s(prompts, "prefill"), gpus=4, isl=256, osl=64
        )
        best = max(best, one.tokens_per_s_per_gpu if one.meets(limits) else 0.0)
    # Only a placement of its own can be better than experts in order.
    assert found.winner.tokens_per_s_per_gpu >= best * (1 - 1e-12)
    assert found.scored
    assert max(one.tokens_per_s_per_gpu for one in found.scored if one.meets(limits)) == pytest.approx(best)
    assert all(found.most_tokens_per_s_per_gpu >= one.tokens_per_s_per_gpu for one in found.scored if one.meets(limits))
    assert found.winner.tokens_per_s_per_gpu <= found.most_tokens_per_s_per_gpu


def test_steady_states_are_their_closed_forms() -> None:
    decode, prefill = ServingLayout(dp=4, batch=8), ServingLayout(dp=2, batch=100)
    both = together(decode, replace(prefill, dp=4), 0.01, 0.2, gpus=8, isl=200, osl=50)
    assert both.tpot_s == pytest.approx(0.01 + 8 * 0.4 / 50)
    assert both.tokens_per_s_per_gpu == pytest.approx(32 / both.tpot_s / 4)
    assert both.ttft_s == pytest.approx(0.4)
    split = apart(decode, prefill, 0.01, 0.2, gpus=8, isl=200, osl=50)
    assert split is not None
    # 1 or 2 instances for prompts at 5 prompts/s, 1 for decode at 64 requests/s: prompts hold it up.
    assert (split.prefill_instances, split.decode_instances) == (2, 1)
    assert split.tokens_per_s_per_gpu == pytest.approx(2 * 5 * 50 / 8)
    assert apart(decode, prefill, 0.01, 0.2, gpus=4, isl=200, osl=50) is None


def test_nobody_on_the_front_is_beaten() -> None:
    decode = ServingLayout(batch=8)
    some = [together(decode, decode, step, 0.1, gpus=8, isl=8, osl=9 + i) for i, step in enumerate((0.1, 0.2, 0.05))]
    for one in pareto(some):
        assert not any(two.tpot_s <= one.tpot_s and two.tokens_per_s_per_gpu > one.tokens_per_s_per_gpu for two in some)


def test_impossible_limits_and_gpus_that_are_not_there_are_one_line() -> None:
    with pytest.raises(
        MoecastError, match=r"no layout can meet it: .* tpot [\d.]+ [mµn]?s and ttft [\d.]+ [mµn]s; the nearest"
    ):
        find_serving(QUESTIONS[0], 2, Slo(tpot_s=1e-9))
    with pytest.raises(MoecastError, match="gpus"):
        find_serving(QUESTIONS[0], 17, Slo())
    with pytest.raises(MoecastError, match=r"none of .* fits .* GiB a GPU"):
        find_serving(replace(QUESTIONS[0], memory_fraction=1e-5), 2, Slo())


def test_a_trace_of_another_model_is_refused() -> None:
    with pytest.raises(MoecastError, match="its L, E, K are"):
        replace(QUESTIONS[0], model=replace(MODEL, experts=8))


def test_what_to_run_names_the_degrees() -> None:
    layout = ServingLayout(tp=2, dp=4, sequence_parallel=False, dispatch="per_choice", batch=32, spare_slots=1)
    sglang, vllm, trtllm = launches(layout, experts=16, placement={"sglang": "p.json", "trtllm": "p.yaml"})
    assert "--tp-size 8 --dp-size 4 --enable-dp-attention --ep-size 8 --moe-a2a-backend deepep" in sglang.command
    assert "--ep-num-redundant-experts 8" in sglang.command
    assert "--init-expert-location p.json" in sglang.command
    assert "--tensor-parallel-size 2 --data-parallel-size 4 --enable-expert-parallel" in vllm.command
    assert "load_balancer: p.yaml" in trtllm.config
    assert "TP and DP at once" in trtllm.cannot


def test_a_prefill_batch_is_tokens_to_every_engine() -> None:
    layout = ServingLayout(dp=4, dispatch="per_rank", batch=2000)
    sglang, vllm, trtllm = launches(layout, experts=16, role="prefill")
    assert "--chunked-prefill-size 8000" in sglang.command  # of all data-parallel ranks
    assert "--max-num-batched-tokens 2000" in vllm.command
    assert "--max_num_tokens 2000" in trtllm.command
    assert not any("batch_size" in one.command or "seqs" in one.command for one in (sglang, vllm, trtllm))
