"""Training: closed forms by hand, the published counts, and that parameters, bytes and work add up."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim import ModelShape, compute, load_model
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.training import (
    BF16,
    FP8,
    FULL,
    NONE,
    OPTIMIZERS,
    SELECTIVE,
    Adam,
    HostWait,
    Kept,
    Muon,
    Precision,
    Recipe,
    Recompute,
    Shard,
    model_flop_per_token,
    model_tflops_per_gpu,
    modules,
    reductions,
    training_memory,
)
from moecast.sim.training.optimizer import newton_schulz_flop, owned_parameters, step_bytes
from moecast.sim.training.passes import (
    gemm_passes,
    grouped_weight_gradient_seconds,
    weight_gradient_seconds,
)
from tests.sim.test_compute import FREE_FLOP, FREE_MEMORY, TERA, hardware

MODELS = {name: load_model(name) for name in ("mixtral-8x7b", "deepseek-v3", "deepseek-v2-lite", "gpt-oss-120b")}
V3, QWEN = MODELS["deepseek-v3"], load_model("qwen3-30b-a3b")
HIDDEN, HEADS = 1024, 16


def gpt(**changes):
    """Two layers of GPT's sizes: a dense one of four times the hidden width, and one of experts of the same."""
    head = HIDDEN // HEADS
    attention = AttentionShape(kind="mha", heads=HEADS, kv_heads=HEADS, head_dim=head, value_dim=head)
    values = {
        "name": "gpt",
        "hidden": HIDDEN,
        "n_layers": 2,
        "moe_layer_ids": (1,),
        "experts": 4,
        "choices": 2,
        "expert_intermediate": 4 * HIDDEN,
        "dense_intermediate": 4 * HIDDEN,
        "attention": attention,
        "vocab": 1000,
        "gated": False,
    }
    return ModelShape(**(values | changes))


# --- the three passes


def test_gradients_of_a_gemm_take_its_flop_each():
    rows = np.array([4096])
    passes = gemm_passes(FREE_MEMORY, rows, inner=512, outer=2048, precision=BF16)
    forward = 2 * 4096 * 512 * 2048 / (500 * TERA)
    assert passes.forward_G == pytest.approx([forward])
    assert passes.input_G == pytest.approx([forward])
    assert passes.weight_G == pytest.approx([forward])


def test_a_weight_gradient_of_few_rows_takes_adding_it_to_the_sum():
    seconds = weight_gradient_seconds(FREE_FLOP, np.array([1]), inner=4096, outer=1024, precision=BF16)
    assert seconds == pytest.approx([(4096 * 1024 * 8 + 2 * (4096 + 1024)) / TERA])
    narrow = replace(BF16, gradients="bf16")
    half = weight_gradient_seconds(FREE_FLOP, np.array([1]), inner=4096, outer=1024, precision=narrow)
    assert half == pytest.approx([(4096 * 1024 * 4 + 2 * (4096 + 1024)) / TERA])


def test_each_pass_has_the_rate_of_its_own_type():
    rows = np.array([1 << 20])
    only_forward = Precision(name="forward", forward="fp8")
    passes = gemm_passes(FREE_MEMORY, rows, inner=512, outer=512, precision=only_forward)
    assert passes.input_G == pytest.approx(2 * passes.forward_G)
    assert passes.weight_G == pytest.approx(passes.input_G)
    all_fp8 = gemm_passes(FREE_MEMORY, rows, inner=512, outer=512, precision=FP8)
    assert all_fp8.backward_G == pytest.approx(2 * passes.forward_G)


def test_fp8_pays_for_its_quantisation_where_memory_is_slow():
    rows = np.array([1000])
    bf16, fp8 = (gemm_passes(FREE_FLOP, rows, inner=1024, outer=1024, precision=kind) for kind in (BF16, FP8))
    cast = 1000 * (2 * 1024 + 2 * (1024 + 4 * 8)) / TERA
    weights = 1024 * 1024 * (2 - 1 - 4 / 128**2) / TERA
    assert fp8.forward_G == pytest.approx(bf16.forward_G + cast - weights)


def test_grouped_weight_gradients_by_hand():
    """Three experts of 200, 128 and 0 rows: 256 + 128 deep tiles of [512, 256], four by two of them each."""
    load = np.array([[200, 128, 0]])
    seconds = grouped_weight_gradient_seconds(FREE_MEMORY, load, inner=512, outer=256, precision=BF16)
    tile = 2 * 128 * 128 / (500 * TERA / 100)
    assert seconds == pytest.approx([max(8 * tile * (256 + 128) / 100, tile * 256)])
    traffic = 384 * 2 * (512 + 256) + 2 * 512 * 256 * 8
    slow = grouped_weight_gradient_seconds(FREE_FLOP, load, inner=512, outer=256, precision=BF16)
    assert slow == pytest.approx([traffic / TERA])


@pytest.mark.parametrize("name", MODELS)
def test_forward_passes_are_those_of_prefill(name):
    model = MODELS[name]
    typed, gpu, tokens, keys = BF16.of(model), hardware(), np.array([4096, 0]), np.array([4096 * 1000, 0])
    attention = modules.attention_passes(model, gpu, tokens, keys, precision=BF16)
    expected = compute.attention_seconds(typed, gpu, phase="prefill", tokens_G=tokens, context_sum_G=keys)
    assert attention.forward_G == pytest.approx(expected)
    dense = modules.dense_layer_passes(model, gpu, tokens, precision=BF16)
    assert dense.forward_G == pytest.approx(compute.dense_layer_seconds(typed, gpu, tokens))
    shared = modules.shared_expert_passes(model, gpu, tokens, precision=BF16)
    assert shared.forward_G == pytest.approx(compute.shared_expert_seconds(typed, gpu, tokens))
    router = modules.router_passes(model, gpu, tokens, precision=BF16)
    assert router.forward_G == pytest.approx(compute.router_seconds(typed, gpu, tokens))
    load = np.array([[300, 5, 0]])
    experts = modules.expert_passes(model, gpu, load, precision=BF16)
    assert experts.forward_G == pytest.approx(compute.expert_seconds(typed, gpu, load, phase="prefill"))


def test_backward_of_flop_bound_modules_is_twice_forward():
    tokens = np.array([100_000])
    for passes in (
        modules.projection_passes(V3, FREE_MEMORY, tokens, precision=BF16),
        modules.dense_layer_passes(V3, FREE_MEMORY, tokens, precision=BF16),
        modules.shared_expert_passes(V3, FREE_MEMORY, tokens, precision=BF16),
    ):
        assert passes.backward_G == pytest.approx(2 * passes.forward_G)


def test_backward_of_experts_is_twice_forward_without_waves():
    """With one SM no wave is left unfilled."""
    gpu = hardware(memory_Bps=1e30, kernel_launch_s=0.0, sms=1, communication_sms=0)
    experts = modules.expert_passes(V3, gpu, np.array([[1280, 256]]), precision=BF16)
    assert experts.input_G == pytest.approx(experts.forward_G)
    assert experts.weight_G == pytest.approx(experts.forward_G)


def test_attention_recomputes_its_scores():
    """Five products for two, at less than the forward pass's speed; MLA's keys are wider than its values."""
    tokens, keys = np.array([4096]), np.array([4096 * 2048])
    gqa = modules.core_passes(QWEN, FREE_MEMORY, tokens, keys)
    assert modules.BACKWARD_RATE * gqa.input_G == pytest.approx(2.5 * gqa.forward_G)
    mla = modules.core_passes(V3, FREE_MEMORY, tokens, keys)
    assert modules.BACKWARD_RATE * mla.input_G == pytest.approx((3 * 192 + 2 * 128) / (192 + 128) * mla.forward_G)
    assert not mla.weight_G.any()


def test_head_and_loss_by_hand():
    tokens = np.array([1000])
    passes = modules.head_passes(V3, FREE_FLOP, tokens, tp=2)
    vocab = V3.vocab // 2
    norm, loss = 4 * 2 * V3.hidden * 1000, 6 * vocab * 1000
    forward = norm + loss + 2 * V3.hidden * vocab + 1000 * 2 * (V3.hidden + vocab)
    assert passes.forward_G == pytest.approx([forward / TERA])
    assert passes.weight_G == pytest.approx([(8 * V3.hidden * vocab + 1000 * 2 * (V3.hidden + vocab)) / TERA])
    lookup = modules.embedding_passes(V3, FREE_FLOP, tokens, precision=BF16)
    assert lookup.weight_G == pytest.approx([1000 * (2 + 8) * V3.hidden / TERA])


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    precision=st.sampled_from((BF16, FP8)),
    load=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    more=st.integers(1, 2000),
    slot=st.integers(0, 5),
    tp=st.sampled_from((1, 2, 4)),
)
def test_more_work_never_takes_less(name, precision, load, more, slot, tp):
    model, gpu = MODELS[name], hardware()
    tokens, keys = np.array([sum(load), sum(load) + more]), np.array([sum(load), sum(load) + more]) * 100
    found = [
        modules.attention_passes(model, gpu, tokens, keys, precision=precision, tp=tp),
        modules.dense_layer_passes(model, gpu, tokens, precision=precision, tp=tp),
        modules.shared_expert_passes(model, gpu, tokens, precision=precision, tp=tp),
        modules.router_passes(model, gpu, tokens, precision=precision),
        modules.norm_passes(model, gpu, tokens),
        modules.embedding_passes(model, gpu, tokens, precision=precision),
        modules.head_passes(model, gpu, tokens, tp=tp),
    ]
    heavier = list(load)
    heavier[slot % len(load)] += more
    found.append(modules.expert_passes(model, gpu, np.array([load, heavier]), precision=precision))
    for passes in found:
        for seconds in (passes.forward_G, passes.input_G, passes.weight_G):
            assert 0 <= seconds[0] <= seconds[1]


# --- model FLOP


@pytest.mark.parametrize(("model", "tokens_per_s", "published"), [(QWEN, 5275, 121), (V3, 3139, 782)])
def test_model_flop_are_those_of_published_runs(model, tokens_per_s, published):
    """Megatron-Bridge's pairs of tokens/s and TFLOP/s per GPU, in sequences of 4096 tokens."""
    found = model_tflops_per_gpu(model, sequence=4096, tokens_per_s_per_gpu=tokens_per_s)
    assert found == pytest.approx(published, rel=5e-3)


def test_model_flop_of_a_gpt_by_hand():
    """6 for each weight that a token meets, and 6 h s for half of the keys of a layer (arXiv 2104.04473)."""
    h, s = HIDDEN, 512
    weights = 2 * 4 * h * h + 8 * h * h + 2 * 8 * h * h + 1000 * h
    assert model_flop_per_token(gpt(), sequence=s) == pytest.approx(6 * weights + 2 * 6 * h * s)
    with pytest.raises(ValueError, match="sequence = 0"):
        model_flop_per_token(gpt(), sequence=0)


# --- parameters, gradients, optimizer


DEGREES = st.fixed_dictionaries(
    {
        "tp": st.sampled_from((1, 2, 4)),
        "ep": st.sampled_from((1, 2, 4)),
        "etp": st.sampled_from((1, 2)),
        "dense_ranks": st.integers(1, 6),
        "expert_ranks": st.integers(1, 6),
    }
)


@st.composite
def stages(draw, model):
    """The shards of a pipeline's stages."""
    degrees = draw(DEGREES)
    cuts = sorted(draw(st.sets(st.integers(1, model.n_layers - 1), max_size=3)))
    bounds = [0, *cuts, model.n_layers]
    return [
        Shard(
            model=model,
            layer_ids=tuple(range(first, last)),
            first=first == 0,
            last=last == model.n_layers,
            **degrees,
        )
        for first, last in pairwise(bounds)
    ]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(MODELS)), zero=st.sampled_from((0, 1, 2, 3)))
def test_every_parameter_is_held_reduced_and_updated_once(data, name, zero):
    """Whatever the degrees: over the ranks of a stage, over the stages."""
    model = MODELS[name]
    shards = data.draw(stages(model))
    held = sum(
        part.cut * shard.tp + part.whole + part.experts * shard.ep * shard.etp
        for shard in shards
        for part in shard.held()
    )
    twice = sum(not shard.first for shard in shards if shard.last) * model.tied_embedding * model.vocab * model.hidden
    assert held == pytest.approx(model.total_parameters() + twice, rel=1e-12)
    for shard in shards:
        copies = {"dense": shard.dense_ranks, "expert": shard.expert_ranks}
        for group, ranks in copies.items():
            of_group = [part for part in reductions(shard, BF16, zero=zero) if part.group == group]
            reduced = sum(part.bytes for part in of_group if part.when == "backward" and "reduce" in part.operation)
            parameters = sum(part.experts if group == "expert" else part.dense for part in shard.held())
            assert reduced == pytest.approx(4 * parameters if ranks > 1 else 0)
        owned = owned_parameters(shard, zero=zero)
        dense = sum(part.dense for part in shard.held()) / (copies["dense"] if zero else 1)
        experts = sum(part.experts for part in shard.held()) / (copies["expert"] if zero else 1)
        assert owned == pytest.approx(dense + experts)


def test_what_each_level_of_zero_sends():
    """ZeRO 1 sends what an all-reduce does; level 2 for every microbatch; level 3 gathers twice more."""
    shard = Shard(model=gpt(), dense_ranks=4, expert_ranks=2)
    dense = sum(part.dense for part in shard.held())
    every = {zero: [part for part in reductions(shard, BF16, zero=zero) if part.group == "dense"] for zero in range(4)}
    assert {part.operation for part in every[0]} == {"all-reduce"}
    assert sum(part.sent_bytes(4) for part in every[0]) == pytest.approx(2 * 4 * dense * 3 / 4)
    assert sum(part.sent_bytes(4) for part in every[1]) == pytest.approx((4 + 2) * dense * 3 / 4)
    assert not any(part.per_microbatch for part in every[1])
    assert [part.per_microbatch for part in every[2] if part.operation == "reduce-scatter"] == [True] * 4
    assert sum(part.sent_bytes(4) for part in every[3]) == pytest.approx((4 + 2 + 2) * dense * 3 / 4)
    assert {part.when for part in every[3]} == {"forward", "backward"}
    assert not reductions(Shard(model=gpt()), BF16)
    with pytest.raises(ValueError, match="zero = 4"):
        reductions(shard, BF16, zero=4)


def test_sequence_parallel_ranks_sum_what_each_has_whole():
    shard = Shard(model=gpt(), tp=2)
    found = reductions(shard, BF16)
    assert {part.group for part in found} == {"tensor"}
    assert sum(part.bytes for part in found) == 4 * (2 * 2 * HIDDEN + 4 * HIDDEN + HIDDEN)
    assert not reductions(shard, BF16, sequence_parallel=False)


def test_adam_by_hand():
    """Gradient three times 4 bytes, master and two moments read and written, and a bf16 weight written: 38 bytes."""
    assert step_bytes(BF16, moments=2) == 3 * 4 + 2 * 4 + 2 * 2 * 4 + 2
    assert step_bytes(FP8, moments=2) == pytest.approx(3 * 4 + 2 * 4 + 2 * 2 * 2 + 1 + 4 / 128**2)
    shard = Shard(model=gpt(), dense_ranks=4, expert_ranks=2)
    parameters = gpt().total_parameters()
    whole = Adam().seconds(shard, FREE_FLOP, BF16, zero=0)
    assert whole == pytest.approx(parameters * 38 / TERA)
    assert Adam().state_bytes(shard, BF16, zero=0) == parameters * 12
    experts = 4 * 8 * HIDDEN**2
    assert Adam().state_bytes(shard, BF16, zero=1) == 12 * ((parameters - experts) / 4 + experts / 2)


def test_muon_by_hand():
    """Five times 4 m² n + 2 m³ for each matrix; of four ranks each takes its share, no less than one matrix."""
    assert newton_schulz_flop(3, 2) == newton_schulz_flop(2, 3) == 5 * (4 * 4 * 3 + 2 * 8)
    h, model = HIDDEN, gpt()
    shard = Shard(model=model)
    flop = 2 * (newton_schulz_flop(h, 3 * h) + newton_schulz_flop(h, h))
    flop += (2 + 4 * 2) * newton_schulz_flop(h, 4 * h) + newton_schulz_flop(h, 4)
    assert Muon().seconds(shard, FREE_MEMORY, BF16, zero=0) == pytest.approx(flop / (500 * TERA))
    many = Shard(model=model, dense_ranks=1000, expert_ranks=1000)
    assert Muon().seconds(many, FREE_MEMORY, BF16) == pytest.approx(2 * newton_schulz_flop(h, 4 * h) / (500 * TERA))
    matrices = 2 * 4 * h * h + 8 * h * h + 4 * 8 * h * h + 4 * h
    assert Adam().state_bytes(shard, BF16) - Muon().state_bytes(shard, BF16) == 4 * matrices


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(MODELS)), optimizer=st.sampled_from(OPTIMIZERS))
def test_more_ranks_never_slow_the_optimizer(data, name, optimizer):
    shard = data.draw(stages(MODELS[name]))[0]
    wider = replace(shard, dense_ranks=2 * shard.dense_ranks, expert_ranks=2 * shard.expert_ranks)
    assert optimizer.seconds(wider, hardware(), BF16) <= optimizer.seconds(shard, hardware(), BF16)
    assert optimizer.state_bytes(wider, BF16) <= optimizer.state_bytes(shard, BF16)
    assert 0 < optimizer.state_bytes(shard, BF16) <= Adam().state_bytes(shard, BF16)


def test_experts_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="ep = 3"):
        Shard(model=gpt(), ep=3)
    with pytest.raises(ValueError, match="tp = 0"):
        Shard(model=gpt(), tp=0)
    with pytest.raises(ValueError, match="layer_ids"):
        Shard(model=gpt(), layer_ids=(2,))
    with pytest.raises(ValueError, match="moments = 'fp8'"):
        Precision(moments="fp8")


# --- memory


def test_activations_of_a_gpt_layer_are_the_published_ones():
    """arXiv 2205.05198: 34 h + 5 a s bytes a token; selective recomputation of attention's core leaves 34 h."""
    s = 2048
    parts = Kept(flash=False, dropout=True).layer(gpt(), BF16, 0, sequence=s)
    assert NONE.kept(parts) == 34 * HIDDEN + 5 * HEADS * s
    assert Recompute(modules=("core_attn",)).kept(parts) == 34 * HIDDEN
    assert FULL.kept(parts) == 2 * HIDDEN


def test_flash_attention_keeps_one_number_a_head():
    flash = NONE.kept(Kept(dropout=True).layer(gpt(), BF16, 0, sequence=2048))
    assert flash == 34 * HIDDEN + 4 * HEADS


def test_an_moe_layer_keeps_the_rows_that_it_serves():
    """Deepseek-V3: 9 routed rows a token keep 9 of an expert's inputs, gate and up, and down's inputs."""
    keep = Kept()
    more, fewer = (keep.layer(V3, BF16, 10, sequence=4096, rows_per_token=rows) for rows in (9, 8))
    assert NONE.kept(more) - NONE.kept(fewer) == 2 * (7168 + 2 * 2048 + 2048)
    assert keep.layer(V3, BF16, 10, sequence=4096) == fewer
    fp8 = keep.layer(V3, FP8, 10, sequence=4096)
    assert fp8["moe"] == 8 * (7168 + 4 * 56 + 2 * 2 * 2048)
    half = keep.layer(V3, BF16, 10, sequence=4096, etp=2)
    assert half["moe"] == 8 * 2 * (7168 + 2048)


@pytest.mark.parametrize("name", MODELS)
def test_recomputing_more_keeps_less_and_takes_longer(name):
    model = MODELS[name]
    for layer in {model.moe_layer_ids[0], 0}:
        parts = Kept().layer(model, BF16, layer, sequence=4096)
        kept = [choice.kept(parts) for choice in (NONE, SELECTIVE, FULL)]
        assert kept[0] > kept[1] > kept[2] > 0
        seconds = {name: np.array([1.0]) for name in ("norms", "projections", "core_attn", "moe_act", "moe")}
        assert [float(choice.seconds(seconds).sum()) for choice in (NONE, SELECTIVE, FULL)] == [0, 2, 5]
    assert float(Recompute(modules=("moe",)).seconds(seconds).sum()) == 2
    assert Recompute(modules=("moe",)).repeats_exchange
    with pytest.raises(ValueError, match="modules"):
        Recompute(modules=("core",))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(MODELS)), precision=st.sampled_from((BF16, FP8)))
def test_each_level_of_zero_holds_no_more(data, name, precision):
    shard = data.draw(stages(MODELS[name]))[0]
    levels = [
        sum(training_memory(shard, precision, tokens=4096, sequence=4096, zero=zero).values()) for zero in range(4)
    ]
    assert all(after <= before for before, after in pairwise(levels))
    if shard.dense_ranks == shard.expert_ranks == 1:
        assert levels[0] == levels[2]


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(MODELS)), in_flight=st.integers(1, 20), more=st.integers(1, 10))
def test_more_microbatches_in_flight_keep_more(data, name, in_flight, more):
    shard = data.draw(stages(MODELS[name]))[0]
    lean, full = (
        training_memory(shard, BF16, tokens=4096, sequence=4096, in_flight=float(n))
        for n in (in_flight, in_flight + more)
    )
    assert full["activations"] > lean["activations"]
    assert lean["activations"] * (in_flight + more) == pytest.approx(full["activations"] * in_flight, rel=1e-6)
    assert all(full[part] == lean[part] for part in lean if part != "activations")


def test_memory_by_hand():
    """A GPT of two layers: 2 + 4 + 12 bytes a parameter; 34 h less masks and scores, and the logits."""
    model = gpt()
    parameters = model.total_parameters()
    found = training_memory(Shard(model=model), BF16, tokens=100, sequence=100, rows_L=[150.0])
    assert found["parameters"] == 2 * parameters
    assert found["gradients"] == 4 * parameters
    assert found["optimizer"] == 12 * parameters
    dense = 32 * HIDDEN + 4 * HEADS
    experts = 16 * HIDDEN + 4 * HEADS + 4 * 4 + 1.5 * 2 * (HIDDEN + 8 * HIDDEN)
    assert found["activations"] == 100 * (dense + experts)
    assert found["logits"] == 100 * 6 * 1000
    assert found["buffers"] == 2 * 2 * 150 * HIDDEN
    with pytest.raises(ValueError, match="rows_L"):
        training_memory(Shard(model=model), BF16, tokens=100, sequence=100, rows_L=[1.0, 2.0])
    with pytest.raises(ValueError, match="tokens = 0"):
        training_memory(Shard(model=model), BF16, tokens=0, sequence=100)


def test_deepseek_v3s_own_layout_fits_its_gpus():
    """PP16, EP64, 2048 H800 of 80 GB, ZeRO 1, FP8, with what it recomputes: it trained so (arXiv 2412.19437, 3.2)."""
    shard = Shard(
        model=V3, layer_ids=tuple(range(4, 8)), first=False, last=False, ep=64, dense_ranks=128, expert_ranks=2
    )
    recompute = Recompute(name="deepseek", modules=("layernorm", "mla_up_proj", "mlp_act", "moe_act"))
    found = training_memory(
        shard, FP8, tokens=4096, sequence=4096, in_flight=17 * 1.0, recompute=recompute, pipeline=True
    )
    assert sum(found.values()) < 80e9


# --- recipes, and the part of a model that a stage has


def test_microbatches_of_a_batch():
    recipe = Recipe(sequence=4096, batch=256, microbatch=4)
    assert recipe.microbatches(4) == 16
    assert recipe.tokens_of_microbatch == 4 * 4096
    with pytest.raises(ValueError, match="batch = 256: must be a multiple of 12: 3 data-parallel ranks"):
        recipe.microbatches(3)
    with pytest.raises(ValueError, match="batch = 256: must be a multiple of 2048: 512 data-parallel"):
        recipe.microbatches(512)
    for wrong in ({"batch": 0}, {"zero": 5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Recipe(**({"sequence": 1, "batch": 1} | wrong))


@settings(max_examples=20, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(MODELS)))
def test_parts_of_a_model_have_its_layers(data, name):
    """Whatever is cut where: each layer has the weights and reads the keys that it had in the whole."""
    model = MODELS[name]
    first = data.draw(st.integers(0, model.moe_layer_ids[-1]))
    last = data.draw(st.integers(max(first, model.moe_layer_ids[0]), model.n_layers - 1))
    layers = tuple(range(first, last + 1))
    part = model.part(layers)
    assert part.n_layers == len(layers)
    for index, layer in enumerate(layers):
        assert (index in part.moe_layer_ids) == (layer in model.moe_layer_ids)
        assert part.mixer_parameters(index) == model.mixer_parameters(layer)
        assert part.mixer_of(index).reads_of(index) == model.mixer_of(layer).reads_of(layer)
    assert not part.is_whole or part.shape_LEK == model.shape_LEK


def test_parts_without_experts_are_refused():
    with pytest.raises(ValueError, match="no MoE layer"):
        V3.part((0, 1, 2))
    with pytest.raises(ValueError, match="layer 61"):
        V3.part((60, 61))


def test_waits_for_hosts_are_checked():
    assert HostWait(launch_s=1.0)
    assert not HostWait()
    with pytest.raises(ValueError, match="copy_s = -1"):
        HostWait(copy_s=-1.0)
