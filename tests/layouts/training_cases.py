"""A small job whose layouts tests search."""

from __future__ import annotations

from dataclasses import replace

from moecast.placement.layouts.training import TrainingLayout, TrainingQuestion, TrainingScores, TrainingSpace
from moecast.sim import ModelShape
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.sim.training import BF16, FP8, HostWait, Recipe
from moecast.topology import load_cluster

MODEL = ModelShape(
    name="tiny",
    hidden=512,
    n_layers=10,
    moe_layer_ids=tuple(range(1, 10)),
    experts=16,
    choices=4,
    expert_intermediate=256,
    shared_experts=1,
    shared_intermediate=256,
    dense_intermediate=1024,
    vocab=1000,
    attention=AttentionShape(kind="gqa", heads=8, kv_heads=4, head_dim=64, value_dim=64),
)


def question(law: str = "zipf:0.8", *, fp8: bool = False, nodes: int = 2, batch: int = 32) -> TrainingQuestion:
    """Ask on nodes of 8 GPUs."""
    trace = routing_by_law(parse_law(law), MODEL, tokens=512, sequence=64, phase="prefill", position=0, seed=1)
    recipe = Recipe(
        sequence=256, batch=batch, precision=FP8 if fp8 else BF16, host=HostWait(fixed_s=1e-4 if fp8 else 0.0)
    )
    return TrainingQuestion(cluster=load_cluster("dgx-h100", nodes=nodes), model=MODEL, trace=trace, recipe=recipe)


QUESTIONS = (question(), question("uniform", fp8=True), question("zipf:1.5"))
HIDDEN = replace(QUESTIONS[0], recipe=replace(QUESTIONS[0].recipe, overlap_grad_reduce=True))
"""Gradients are reduced beside passes."""
SPACE = TrainingSpace(gpus=16)
LAYOUTS = list(SPACE.layouts(QUESTIONS[0]))
SMALL = TrainingSpace(
    gpus=4,
    most_tp=2,
    most_cp=1,
    most_etp=1,
    virtual=(1, 2),
    schedules=("1f1b", "zb_h1", "dualpipe_v"),
    microbatches=(1, 2),
    recomputes=("none",),
    zeros=(1,),
    dispatch=("nccl",),
)


def step_s(asked: TrainingQuestion, layout: TrainingLayout) -> float:
    """Seconds of the step as `moecast train` times it, by ``bound``."""
    from moecast.placement.layouts.training import TrainingFloors

    return TrainingScores(asked, TrainingFloors(asked)).whole(layout).step_time_s
