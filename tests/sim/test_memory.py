"""Memory per GPU, part by part, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from moecast.sim.load_model import load_model
from moecast.sim.memory import fits, memory_by_part
from moecast.sim.plan import Plan
from moecast.sim.step import Step
from moecast.sim.workload import Workload
from moecast.topology import Hardware

GPU = Hardware(
    name="round",
    sms=100,
    memory_bytes=80 * 2**30,
    memory_Bps=2e12,
    peak_flop_per_s={"bf16": 1e15, "fp8": 2e15},
    efficiency={"gemm": 0.5, "grouped_gemm": 0.5, "attention": 0.5, "memory": 0.5},
    kernel_launch_s=0.0,
    gemm_tile_rows=128,
    communication_sms=20,
    message_s=0.0,
    collective_launch_s=0.0,
    count_exchange_s=0.0,
    barrier_s=0.0,
)
V2_LITE, V3, GPT_OSS = map(load_model, ("deepseek-v2-lite", "deepseek-v3", "gpt-oss-120b"))
DECODE = Workload(phase="decode", tokens_per_rank=2, steps=1)


def contiguous(model, ep, **changes):
    plan = Plan.contiguous(
        layers=model.layers, experts=model.experts, choices=model.choices, ep=ep, layer_ids=model.moe_layer_ids
    )
    return plan.with_(**changes)


def decode_step(contexts_GB):
    contexts = np.asarray(contexts_GB)
    ranks, sequences = contexts.shape
    return Step(
        token_T=np.arange(contexts.size),
        source_T=np.repeat(np.arange(ranks, dtype=np.int32), sequences),
        context_T=contexts.ravel().astype(np.int64),
        phase="decode",
    )


def prefill_step(lengths_G):
    contexts = [np.arange(1, n + 1) for n in lengths_G]
    tokens = sum(lengths_G)
    return Step(
        token_T=np.arange(tokens),
        source_T=np.repeat(np.arange(len(lengths_G), dtype=np.int32), lengths_G),
        context_T=np.concatenate(contexts).astype(np.int64),
        phase="prefill",
        last_T=np.concatenate([np.arange(n) == n - 1 for n in lengths_G]),
    )


def parts(model, plan, steps, workload=DECODE, **options):
    return memory_by_part(model, plan, workload, GPU, steps=steps, **options)


def test_weights_and_slots_add_up_to_the_model():
    """One rank with every expert once holds exactly the model's parameters."""
    plan = contiguous(V2_LITE, 1)
    found = parts(V2_LITE, plan, [decode_step([[5, 5]])])
    assert found["slots"] == 26 * 64 * V2_LITE.expert_bytes
    parameters = (found["weights"] + found["slots"]) / 2
    assert parameters == pytest.approx(V2_LITE.total_parameters(), rel=1e-6)


def test_slots_count_where_they_are_empty_and_where_ranks_have_fewer():
    step = decode_step([[5, 5]] * 8)
    plan = contiguous(V2_LITE, 8)
    assert parts(V2_LITE, plan, [step])["slots"] == 26 * 8 * V2_LITE.expert_bytes
    wide = Plan.contiguous(layers=26, experts=64, choices=6, ep=8, slots_per_rank=10, layer_ids=V2_LITE.moe_layer_ids)
    assert parts(V2_LITE, wide, [step])["slots"] == 26 * 10 * V2_LITE.expert_bytes
    fewer = wide.with_(slots_per_rank=(9,) * 8)
    assert parts(V2_LITE, fewer, [step])["slots"] == 26 * 9 * V2_LITE.expert_bytes


def test_kv_is_what_the_fullest_rank_holds():
    steps = [decode_step([[10, 20], [5, 5]]), decode_step([[11, 21], [100, 6]])]
    found = parts(V2_LITE, contiguous(V2_LITE, 2), steps)
    assert found["kv"] == 27 * 106 * 2 * 576


def test_prefill_holds_each_sequence_once():
    workload = Workload(phase="prefill", tokens_per_rank=30, steps=1)
    found = parts(V2_LITE, contiguous(V2_LITE, 2), [prefill_step([30, 30])], workload)
    assert found["kv"] == 27 * 30 * 2 * 576


def test_sliding_windows_hold_their_window():
    found = parts(GPT_OSS, contiguous(GPT_OSS, 1), [decode_step([[1000, 50]])])
    assert found["kv"] == 2 * 2 * 8 * 64 * (18 * (128 + 50) + 18 * 1050)


def test_staying_tokens_need_every_context_of_the_group_everywhere():
    step = decode_step([[10, 20], [5, 5]])
    found = parts(V2_LITE, contiguous(V2_LITE, 2, dispatch="stay"), [step])
    assert found["kv"] == 27 * 40 * 2 * 576


def test_low_latency_buffers_hold_every_token_at_every_slot_twice():
    step = decode_step([[1, 1]] * 4)
    low, normal = (
        parts(V3, contiguous(V3, 4, dispatch=mode), [step])["activations"] for mode in ("per_choice", "per_rank")
    )
    tokens, slots, combine = 2, 256, 2 * 7168 + 16
    assert low - normal == 2 * (slots * tokens * combine + slots * tokens * combine)
    assert parts(V3, contiguous(V3, 4), [step])["activations"] == low  # decode's default


def test_more_rows_on_a_rank_take_more_activations():
    workload = Workload(phase="prefill", tokens_per_rank=300, steps=1)
    plan, step = contiguous(V2_LITE, 2), prefill_step([300, 300])
    few, many = (parts(V2_LITE, plan, [step], workload, expert_rows=rows)["activations"] for rows in (10_000, 20_000))
    assert many - few == 10_000 * ((2 * 2048 + 16) + 2 * 2048 + 4 * 1408 + 2 * 1408 + 2 * 2048)


def test_pipeline_stages_share_the_layers():
    step = decode_step([[5, 5]])
    whole = parts(V2_LITE, contiguous(V2_LITE, 1), [step])
    plan = contiguous(V2_LITE, 1, pp=2, dp=1, gpu_of_rank=(0, 1), stage_of_layer=(0,) * 14 + (1,) * 13)
    half = parts(V2_LITE, plan, [step])
    assert half["slots"] == whole["slots"] // 2
    assert half["kv"] * 27 == whole["kv"] * 14  # the dense layer stands in the first stage, the fuller one
    even = parts(V2_LITE, replace(plan, stage_of_layer=None), [step])
    assert even["slots"] <= whole["slots"] * 14 / 26


def test_tensor_parallel_ranks_share_heads_dense_layers_and_vocabulary_but_not_the_latent_cache():
    step = decode_step([[50, 50]])
    for model, share in ((V2_LITE, 1), (GPT_OSS, 2)):
        one = parts(model, contiguous(model, 2, tp=1), [decode_step([[50, 50], [50, 50]])])
        two = parts(model, contiguous(model, 2, tp=2, dp=1), [step])
        assert two["kv"] * share == pytest.approx(one["kv"], rel=1e-6)
        cut = model.n_layers * model.mixer_parameters(0) + len(model.dense_layer_ids) * model.dense_parameters
        cut += 2 * model.vocab * model.hidden  # embedding and LM head, two bytes a weight
        assert one["weights"] - two["weights"] == cut


def test_attention_by_tp_beside_experts_by_ep_on_four_gpus():
    """What is not experts: 2.87 GiB of Qwen3-30B-A3B on each GPU with DP attention, a quarter with TP 4."""
    model = load_model("qwen3-30b-a3b")
    rest = 2 * (model.total_parameters() - model.layers * model.experts * model.expert_parameters)
    whole = parts(model, contiguous(model, 4), [decode_step([[5]] * 4)])["weights"]
    cut = parts(model, contiguous(model, 4, tp=4, dp=1), [decode_step([[5] * 4])])["weights"]
    assert rest / 2**30 == pytest.approx(2.87, abs=0.005)
    assert whole == pytest.approx(rest, rel=1e-4)  # the last norm
    not_cut = 2 * model.layers * (model.router_parameters + 2 * model.hidden)
    assert cut == pytest.approx((rest - not_cut) / 4 + not_cut, rel=1e-4)


def test_expert_tensor_parallel_ranks_share_each_expert():
    step = decode_step([[5, 5]] * 4)
    whole = parts(V2_LITE, contiguous(V2_LITE, 2), [step])["slots"]
    plan = contiguous(V2_LITE, 2, etp=2, dp=4, gpu_of_rank=(0, 1, 2, 3))
    assert parts(V2_LITE, plan, [step])["slots"] == whole // 2


def test_what_fits():
    """Nine tenths by default, as engines take; the rest is kept."""
    assert fits({"weights": 40 * 2**30, "kv": 32 * 2**30}, GPU)
    assert not fits({"weights": 40 * 2**30, "kv": 32 * 2**30 + 1}, GPU)
    assert fits({"weights": 40 * 2**30, "kv": 40 * 2**30}, GPU, fraction=1)
    assert not fits({"weights": 40 * 2**30, "kv": 40 * 2**30 + 1}, GPU, fraction=1)
