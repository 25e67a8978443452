"""Makes the traces in `megatron-core/` with Megatron-Core's own tracer and router, on a CPU, for the tests to import.

    pip download --no-deps megatron-core==0.16.1 && unzip -q megatron_core-*.whl -d megatron-wheel
    PYTHONPATH=megatron-wheel python -m tests.importers.record_megatron router_trace.py tests/importers/megatron-core

No release has the tracer yet: `router_trace.py` is megatron/core/transformer/moe/router_trace.py of NVIDIA/Megatron-LM
at commit 059f0f5. (The files here were made with a copy of its code that lacks the docstrings and the two functions
that read its side files.) It hooks real `TopKRouter` modules of 0.16.1, which choose from made-up hidden states. What
is made up here is the model around them: modules with the names that they have in a `GPTModel`, for four ranks in two
pipeline stages, driven as the training loop drives it: micro-batches, then `advance_step`.
"""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

EXPERTS, CHOICES, HIDDEN = 6, 2, 16
STAGES = ((0, (1, 2)), (3, (0, 1)))
"""The model's layer from which a stage counts, and its MoE layers: layer 0 of the model is dense."""
RANKS_OF_STAGE = ((0, 1), (2, 3))
STEPS, MICRO_BATCHES, TOKENS, SEQUENCES = 2, 3, 2, 2


def router_inputs(replica, step, batch, layer):
    """Hidden states [tokens, sequences, hidden] that reach a layer's router, by the model's number of the layer."""
    rng = np.random.default_rng([replica, step, batch, layer])
    return rng.standard_normal((TOKENS, SEQUENCES, HIDDEN)).astype(np.float32)


def router_weight(layer):
    """Its weights [experts, hidden]."""
    return np.random.default_rng([1000, layer]).standard_normal((EXPERTS, HIDDEN)).astype(np.float32)


def routing(replica, step, batch, layer):
    """What it must choose: the experts [tokens, choices] of the largest logits, in the order of their numbers."""
    logits_TE = router_inputs(replica, step, batch, layer).reshape(-1, HIDDEN) @ router_weight(layer).T
    return np.sort(np.argsort(-logits_TE, axis=1)[:, :CHOICES], axis=1)


def _router(layer):
    """Megatron's router with the weights of a layer."""
    import torch
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.moe.router import TopKRouter
    from megatron.core.transformer.transformer_config import TransformerConfig

    moe_utils.te_general_gemm = None  # 0.16.1 forgets to, where there is no Transformer Engine
    config = TransformerConfig(
        num_layers=5,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        num_moe_experts=EXPERTS,
        moe_router_topk=CHOICES,
        moe_router_load_balancing_type="none",
        use_cpu_initialization=True,
        add_bias_linear=False,
    )
    alone = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    groups = SimpleNamespace(tp=alone, cp=alone, tp_cp=alone, tp_dp_cp=alone)
    router = TopKRouter(config, pg_collection=groups)
    router.set_layer_number(layer + 1)
    with torch.no_grad():
        router.weight.copy_(torch.from_numpy(router_weight(layer)))
    return router


def _named(**modules):
    """A module that holds these."""
    import torch

    held = torch.nn.Module()
    for name, module in modules.items():
        held.add_module(name, module)
    return held


def stage_model(stage, *, prediction=None):
    """A pipeline stage's modules, and its routers as (router, the model's number of its layer).

    `prediction` adds a multi-token prediction layer, of a "hybrid" model or of a "gpt" one, as layer 100.
    """
    import torch

    first, moe_layers = STAGES[stage]
    routers = [(_router(first + layer), first + layer) for layer in moe_layers]
    layers = torch.nn.ModuleList([_named() for _ in range(max(moe_layers) + 1)])
    for layer, (router, _) in zip(moe_layers, routers, strict=True):
        layers[layer].add_module("mlp", _named(router=router))
    model = _named(decoder=_named(layers=layers))
    if prediction is not None:
        router = _router(100)
        router.set_layer_number(1)
        inner = _named(mlp=_named(router=router))
        if prediction == "hybrid":
            inner = _named(layers=torch.nn.ModuleList([inner]))
        model.add_module("mtp", _named(layers=torch.nn.ModuleList([_named(mtp_model_layer=inner)])))
        routers.append((router, 100))
    return model, routers


def record(tracing, folder, rank, stage, replica, **more):
    """Trace a rank through the steps."""
    import torch

    tracer = tracing.RouterTracer(str(folder), max_steps=STEPS, rank=rank, training_mode=True)
    model, routers = stage_model(stage, **more)
    tracer.register_hooks([model])
    for step in range(STEPS):
        for batch in range(MICRO_BATCHES):
            for router, layer in routers:
                router(torch.from_numpy(router_inputs(replica, step, batch, layer)))
        tracer.advance_step()
    tracer.flush()


def main():
    """Trace all ranks into one folder, and the two kinds of multi-token prediction into folders of their own."""
    import torch

    source, out = map(Path, sys.argv[1:])
    # A build of torch without CUDA cannot answer these.
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.current_device = lambda: "cpu"
    spec = importlib.util.spec_from_file_location("router_trace", source)
    tracing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tracing)
    shutil.rmtree(out, ignore_errors=True)
    for stage, ranks in enumerate(RANKS_OF_STAGE):
        for replica, rank in enumerate(ranks):
            record(tracing, out / "stages", rank, stage, replica)
    for kind in ("hybrid", "gpt"):
        record(tracing, out / f"prediction-{kind}", 0, 1, 0, prediction=kind)


if __name__ == "__main__":
    main()
