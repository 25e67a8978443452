"""Megatron-LM's options for a layout, and the words for it."""

from __future__ import annotations

from moecast.placement.layouts.training import TrainingLayout
from moecast.placement.layouts.training.launch import megatron, pipeline_layout
from moecast.sim.training import FP8, Recipe
from tests.layouts.training_cases import MODEL

RECIPE = Recipe(sequence=4096, batch=512, precision=FP8)


def test_what_to_run_names_the_degrees() -> None:
    layout = TrainingLayout(
        tp=2,
        cp=2,
        pp=4,
        dp=2,
        ep=4,
        etp=2,
        virtual=2,
        schedule="1f1b_overlapped",
        microbatch=1,
        recompute="selective",
        zero=1,
        dispatch="per_domain",
    )
    said = megatron(layout, RECIPE, MODEL).command
    assert said.startswith("torchrun --nproc-per-node 8 --nnodes 4 pretrain_gpt.py")
    for option in (
        "--tensor-model-parallel-size 2",
        "--context-parallel-size 2",
        "--pipeline-model-parallel-size 4",
        "--expert-model-parallel-size 4",
        "--expert-tensor-parallel-size 2",
        "--sequence-parallel",
        "--micro-batch-size 1",
        "--global-batch-size 512",
        "--seq-length 4096",
        "--use-distributed-optimizer",
        "--overlap-moe-expert-parallel-comm --delay-wgrad-compute",
        "--recompute-modules core_attn moe_act",
        "--moe-token-dispatcher-type flex --moe-flex-dispatcher-backend deepep",
        "--fp8-recipe blockwise",
        "--pipeline-model-parallel-layout 'Et*2|t*2|(t|)*5tL'",
    ):
        assert option in said, option


def test_what_megatron_has_no_option_for_is_said() -> None:
    layout = TrainingLayout(pp=2, dp=2, ep=2, schedule="dualpipe", zero=3, dispatch="nccl", recompute="full")
    launch = megatron(layout, RECIPE, MODEL)
    assert "schedule dualpipe" in launch.cannot
    assert "ZeRO 3" in launch.cannot
    assert "--data-parallel-sharding-strategy optim_grads_params" in launch.command
    assert "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1" in launch.command
    assert "--moe-token-dispatcher-type alltoall" in launch.command
    assert not megatron(TrainingLayout(dp=4, ep=4, dispatch="nccl"), RECIPE, MODEL).cannot


def test_a_cut_in_words_and_as_megatron_writes_it() -> None:
    layout = TrainingLayout(pp=4, dp=2, ep=2, cut=(0, 0, 0, 1, 1, 2, 2, 3, 3, 3))
    assert layout.layers_of_stages() == "3, 2 x 2, 3"
    assert pipeline_layout(layout, 10) == "Et*3|(t*2|)*2t*3L"
    assert layout.name().endswith("layers 3, 2 x 2, 3")
