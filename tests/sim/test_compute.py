"""Compute cost: closed forms by hand, limits, and that work never makes a rank faster."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim import compute
from moecast.sim.cost import roofline
from moecast.sim.load_model import list_models, load_model
from moecast.topology import Hardware

TERA = 1e12


def hardware(**changes):
    """A GPU with round numbers."""
    values = {
        "name": "round",
        "sms": 100,
        "memory_bytes": 80 * 2**30,
        "memory_Bps": 2 * TERA,
        "peak_flop_per_s": {"bf16": 1000 * TERA, "fp8": 2000 * TERA},
        "efficiency": {"gemm": 0.5, "grouped_gemm": 0.5, "attention": 0.25, "memory": 0.5},
        "kernel_launch_s": 1e-6,
        "gemm_tile_rows": 128,
        "communication_sms": 20,
        "message_s": 0.0,
        "collective_launch_s": 0.0,
        "count_exchange_s": 0.0,
        "barrier_s": 0.0,
    }
    return Hardware(**(values | changes))


FREE_MEMORY = hardware(memory_Bps=1e30, kernel_launch_s=0.0)
FREE_FLOP = hardware(peak_flop_per_s={"bf16": 1e30, "fp8": 1e30}, kernel_launch_s=0.0)
MIXTRAL, V3, V2_LITE, GPT_OSS = map(load_model, ("mixtral-8x7b", "deepseek-v3", "deepseek-v2-lite", "gpt-oss-120b"))


def test_a_large_gemm_takes_its_flop():
    seconds = roofline.gemm_seconds(hardware(), np.array([8192]), inner=8192, outer=8192, element_type="bf16")
    assert seconds == pytest.approx([2 * 8192**3 / (500 * TERA) + 1e-6])


def test_a_row_through_a_gemm_takes_reading_the_weights():
    seconds = roofline.gemm_seconds(hardware(), np.array([1]), inner=4096, outer=4096, element_type="bf16")
    assert seconds == pytest.approx([(4096 * 4096 * 2 + 2 * 4096 * 2) / TERA + 1e-6])


def test_fp8_weights_are_multiplied_twice_as_fast_where_the_gpu_can():
    rows = np.array([100_000])
    fp8 = roofline.gemm_seconds(FREE_MEMORY, rows, inner=512, outer=512, element_type="fp8")
    bf16 = roofline.gemm_seconds(FREE_MEMORY, rows, inner=512, outer=512, element_type="bf16")
    assert bf16 == pytest.approx(2 * fp8)
    old = hardware(memory_Bps=1e30, kernel_launch_s=0.0, peak_flop_per_s={"bf16": 1000 * TERA})
    assert roofline.gemm_seconds(old, rows, inner=512, outer=512, element_type="fp8") == pytest.approx(bf16)


def test_mxfp4_runs_at_bf16_rate_before_blackwell():
    peaks = {"bf16": 1.0, "fp8": 2.0}
    assert roofline.multiply_type("mxfp4", peaks) == "bf16"
    assert roofline.multiply_type("mxfp4", peaks | {"fp4": 4.0}) == "fp8"


def test_experts_by_hand_when_arithmetic_bound():
    """Two slots of Mixtral, 200 and 1 tokens: 2 + 1 tiles of 128 rows, in waves over 100 SMs."""
    seconds = compute.expert_seconds(MIXTRAL, FREE_MEMORY, np.array([[200, 1]]), phase="prefill")
    tiles = 3
    up_waves = -(-tiles * (2 * 14336 // 128) // 100)
    down_waves = -(-tiles * (4096 // 128) // 100)
    assert (up_waves, down_waves) == (7, 1)
    tile_s = 2 * 128 * 128 / (500 * TERA / 100)
    assert seconds == pytest.approx([tile_s * (up_waves * 4096 + down_waves * 14336)], rel=1e-6)


def test_experts_by_hand_when_memory_bound():
    """Prefill moves whole tiles and permutes; decode moves the real rows."""
    load = np.array([[200, 1, 0]])
    weights = 2 * 3 * 4096 * 14336 * 2
    per_row = 2 * 4096 + 2 * 2 * 14336 + (2 * 2 + 2) * 14336 + 2 * 14336 + 2 * 4096
    permuting = 2 * 2 * 4096 + 2 * 2 * 4096
    prefill = compute.expert_seconds(MIXTRAL, FREE_FLOP, load, phase="prefill")
    assert prefill == pytest.approx([(weights + 3 * 128 * (per_row + permuting)) / TERA])
    decode = compute.expert_seconds(MIXTRAL, FREE_FLOP, load, phase="decode")
    assert decode == pytest.approx([(weights + 201 * per_row) / TERA])


def test_one_token_costs_reading_its_experts():
    """The limit of few tokens: weights of the experts hit, nothing else of weight."""
    load = np.zeros((1, 8), int)
    load[0, :2] = 1
    weights_s = 2 * MIXTRAL.expert_bytes / TERA
    seconds = compute.expert_seconds(MIXTRAL, hardware(kernel_launch_s=0.0), load, phase="decode")
    assert weights_s < seconds[0] < 1.02 * weights_s


def test_many_tokens_cost_their_flop():
    """The limit of many tokens: the arithmetic at the reached rate, whatever the tiles."""
    load = np.full((1, 8), 1_000_000)
    flop_s = 2 * MIXTRAL.expert_parameters * 8_000_000 / (500 * TERA)
    seconds = compute.expert_seconds(MIXTRAL, FREE_MEMORY, load, phase="prefill")
    assert flop_s <= seconds[0] < 1.001 * flop_s


def test_communication_slows_experts_by_the_sms_it_takes():
    load = np.full((1, 8), 100_000)
    full, less = (compute.expert_seconds(MIXTRAL, FREE_MEMORY, load, phase="prefill", sms=sms) for sms in (None, 80))
    assert less == pytest.approx(full * 100 / 80, rel=1e-3)


def test_expert_tensor_parallelism_cuts_the_arithmetic():
    load = np.full((1, 8), 100_000)
    whole, half = (compute.expert_seconds(MIXTRAL, FREE_MEMORY, load, phase="prefill", etp=etp) for etp in (1, 2))
    assert half == pytest.approx(whole / 2, rel=1e-3)


def test_empty_experts_still_launch():
    assert compute.expert_seconds(MIXTRAL, hardware(), np.zeros((2, 4), int), phase="decode") == pytest.approx(
        [3e-6] * 2
    )
    assert compute.expert_seconds(MIXTRAL, hardware(), np.zeros((2, 4), int), phase="prefill") == pytest.approx(
        [5e-6] * 2
    )


def test_axes_in_front_are_kept():
    load = np.random.default_rng(0).integers(0, 500, (3, 2, 4, 5))
    together = compute.expert_seconds(V3, hardware(), load, phase="prefill")
    assert together.shape == (3, 2, 4)
    assert together[1, 1] == pytest.approx(compute.expert_seconds(V3, hardware(), load[1, 1], phase="prefill"))


@given(st.sampled_from(list_models()), st.sampled_from(["prefill", "decode"]), st.data())
@settings(max_examples=150, deadline=None)
def test_more_load_never_takes_less_time(name, phase, data):
    model, gpu = load_model(name), hardware(kernel_launch_s=data.draw(st.sampled_from([0.0, 2e-6])))
    tokens = st.lists(st.integers(0, 5000), min_size=3, max_size=3)
    load, more = np.array(data.draw(tokens)), np.array(data.draw(tokens))
    sms = data.draw(st.integers(1, 100))
    first, second = (
        compute.expert_seconds(model, gpu, x[None, :], phase=phase, sms=sms)[0] for x in (load, load + more)
    )
    assert 0 <= first <= second
    for seconds in (
        compute.shared_expert_seconds,
        compute.dense_layer_seconds,
        compute.router_seconds,
        compute.norm_seconds,
        compute.embedding_seconds,
        compute.head_seconds,
    ):
        assert (seconds(model, gpu, load) <= seconds(model, gpu, load + more)).all(), seconds.__name__
        assert (seconds(model, gpu, np.zeros(2, int)) == 0).all(), seconds.__name__
    keys = load * data.draw(st.integers(1, 3000))
    before = compute.attention_seconds(model, gpu, phase=phase, tokens_G=load, context_sum_G=keys)
    after = compute.attention_seconds(model, gpu, phase=phase, tokens_G=load + more, context_sum_G=keys + more)
    assert (before <= after).all()


def attention(model, gpu, tokens, keys, phase, **options):
    return compute.attention_seconds(
        model, gpu, phase=phase, tokens_G=np.array([tokens]), context_sum_G=np.array([keys]), **options
    )[0]


def extra(model, gpu, phase, keys=1e9):
    """Seconds per key, far from all fixed costs."""
    return (attention(model, gpu, 1, 2 * keys, phase) - attention(model, gpu, 1, keys, phase)) / keys


def test_decode_reads_the_cache_of_grouped_queries():
    assert extra(MIXTRAL, FREE_FLOP, "decode") == pytest.approx(2 * 2 * 8 * 128 / TERA)
    assert extra(load_model("olmoe-1b-7b"), FREE_FLOP, "decode") == pytest.approx(2 * 2 * 16 * 128 / TERA)


def test_decode_of_latent_attention_reads_one_vector_for_all_heads():
    assert extra(V3, FREE_FLOP, "decode") == pytest.approx(2 * 576 / TERA)
    assert extra(V3, FREE_MEMORY, "decode") == pytest.approx(2 * 128 * (512 + 64 + 512) / (250 * TERA))


def test_prefill_of_latent_attention_expands_the_heads():
    assert extra(V3, FREE_MEMORY, "prefill") == pytest.approx(2 * 128 * (192 + 128) / (250 * TERA))
    assert extra(V3, FREE_FLOP, "prefill") == pytest.approx(2 * 128 * (192 + 128) / 128 / TERA)


def test_projections_take_two_flop_per_weight_and_token():
    tokens = 10**6
    for model in (MIXTRAL, V3, V2_LITE, GPT_OSS):
        rate = (1000 if model.dense_type == "fp8" else 500) * TERA
        seconds = attention(model, FREE_MEMORY, tokens, 0, "prefill")
        assert seconds == pytest.approx(2 * tokens * model.mixer_parameters(0) / rate, rel=1e-6)


def test_a_sliding_window_limits_the_keys():
    full = attention(GPT_OSS, hardware(), 4, 4 * 5000, "decode")
    window = attention(GPT_OSS, hardware(), 4, 4 * 5000, "decode", window_sum_G=np.array([4 * 128]))
    short = attention(GPT_OSS, hardware(), 4, 4 * 128, "decode")
    assert window == short < full


def test_tensor_parallel_attention_shares_the_heads():
    whole, quarter = (attention(MIXTRAL, FREE_MEMORY, 4096, 4096 * 2048, "prefill", tp=tp) for tp in (1, 4))
    assert quarter == pytest.approx(whole / 4)
    latent = [attention(V3, FREE_FLOP, 1, 10**9, "decode", tp=tp) for tp in (1, 4)]
    assert latent[1] > 0.9 * latent[0]  # every rank reads the whole latent cache


def test_a_rank_without_tokens_has_no_attention():
    assert attention(V3, hardware(), 0, 0, "decode") == 0


def test_shared_experts_are_a_dense_mlp_of_their_width():
    tokens = np.array([10**6])
    seconds = compute.shared_expert_seconds(V2_LITE, FREE_MEMORY, tokens)
    assert seconds == pytest.approx(2 * 10**6 * 3 * 2048 * 2816 / (500 * TERA))
    assert (compute.shared_expert_seconds(MIXTRAL, hardware(), tokens) == 0).all()
    assert (compute.dense_layer_seconds(MIXTRAL, hardware(), tokens) == 0).all()
    dense = compute.dense_layer_seconds(V3, FREE_MEMORY, tokens)
    assert dense == pytest.approx(2 * 10**6 * 3 * 7168 * 18432 / (1000 * TERA))


def test_the_head_multiplies_by_the_vocabulary():
    seconds = compute.head_seconds(V3, FREE_MEMORY, np.array([10**5]))
    assert seconds == pytest.approx(2 * 10**5 * 7168 * 129280 / (500 * TERA))


def test_thirty_two_ranks_are_quick():
    from time import perf_counter

    load = np.random.default_rng(0).integers(0, 2000, (26, 32, 3))
    start = perf_counter()
    for _ in range(20):
        compute.expert_seconds(V2_LITE, hardware(), load, phase="prefill", sms=80)
    assert (perf_counter() - start) / 20 < 0.01
