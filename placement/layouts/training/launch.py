"""What to run: the options with which Megatron-LM starts a training job in a layout.

Sources: Megatron-LM's `megatron/training/arguments.py` and `megatron/core/model_parallel_config.py`, its guides to
custom pipeline layouts, to MoE and to Megatron-FSDP; read on 2026-11-28. None of these commands was run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecast.placement.layouts.launch import Launch, Options, command_line
from moecast.placement.layouts.training.find import ENGINES_OWN
from moecast.placement.layouts.training.space import dealt
from moecast.sim.training import RECOMPUTES

if TYPE_CHECKING:
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.sim.model import ModelShape
    from moecast.sim.training import Recipe

START = "torchrun --nproc-per-node {each} --nnodes {nodes} pretrain_gpt.py MODEL_ARGS"
SHARDING = {2: "optim_grads", 3: "optim_grads_params"}
MODULES = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts")
"""Modules that its selective recomputation names."""


def megatron(
    layout: TrainingLayout, recipe: Recipe, model: ModelShape, *, gpus_of_node: int = 8, started_by: str = ""
) -> Launch:
    """Start a job in a layout with Megatron-LM; MODEL_ARGS stands for the model's own sizes.

    `started_by`: what puts ranks on GPUs that are not consecutive where it has no option for that.
    """
    options = _degrees(layout, model) | _batch(layout, recipe) | _memory(layout) | _types(recipe)
    each = min(gpus_of_node, layout.gpus)
    start = START.format(each=each, nodes=-(-layout.gpus // each))
    return Launch(engine="megatron", command=command_line(start, options), cannot=_missing(layout, model, started_by))


def _degrees(layout: TrainingLayout, model: ModelShape) -> Options:
    options: Options = {
        "--tensor-model-parallel-size": layout.tp,
        "--context-parallel-size": layout.cp,
        "--pipeline-model-parallel-size": layout.pp,
        "--expert-model-parallel-size": layout.ep,
        "--expert-tensor-parallel-size": str(layout.etp),  # else it is that of attention
        "--sequence-parallel": layout.tp > 1,
        "--moe-grouped-gemm": True,
    }
    options["--use-tp-pp-dp-mapping"] = stages_first(layout)
    if layout.cp > 1:
        options["--cp-comm-type"] = "p2p"
    stages = layout.pp * layout.virtual
    if layout.cut or model.n_layers % stages:
        options["--pipeline-model-parallel-layout"] = pipeline_layout(layout, model.n_layers)
    elif layout.virtual > 1:
        options["--num-virtual-stages-per-pipeline-rank"] = layout.virtual
    if layout.dispatch == "per_domain":
        options |= {"--moe-token-dispatcher-type": "flex", "--moe-flex-dispatcher-backend": "deepep"}
    elif layout.dispatch is not None:
        options["--moe-token-dispatcher-type"] = "allgather" if layout.dispatch == "all_gather" else "alltoall"
    if layout.schedule == "1f1b_overlapped":
        options |= {"--overlap-moe-expert-parallel-comm": True, "--delay-wgrad-compute": True}
    return options


def pipeline_layout(layout: TrainingLayout, n_layers: int) -> str:
    """A cut as Megatron-LM writes it: ``Et*4|(t*4|)*14t|L`` with E the embedding, t a layer, L the loss."""
    stages = layout.pp * layout.virtual
    cut = layout.cut or dealt(n_layers, stages)
    parts = [f"t*{count}" if (count := cut.count(stage)) > 1 else "t" for stage in range(stages)]
    parts[0], parts[-1] = f"E{parts[0]}", f"{parts[-1]}L"
    runs: list[list[object]] = []
    for part in parts[:-1]:
        if runs and runs[-1][0] == part:
            runs[-1][1] = int(str(runs[-1][1])) + 1
        else:
            runs.append([part, 1])
    return "".join(f"({part}|)*{times}" if times != 1 else f"{part}|" for part, times in runs) + parts[-1]


def _batch(layout: TrainingLayout, recipe: Recipe) -> Options:
    return {
        "--micro-batch-size": str(layout.microbatch),
        "--global-batch-size": recipe.batch,
        "--seq-length": recipe.sequence,
    }


def _memory(layout: TrainingLayout) -> Options:
    recompute, options = RECOMPUTES[layout.recompute], Options()
    if recompute.full:
        options |= {
            "--recompute-granularity": "full",
            "--recompute-method": "uniform",
            "--recompute-num-layers": 1,
        }
    elif modules := [name for name in recompute.modules if name in MODULES]:
        options |= {"--recompute-granularity": "selective", "--recompute-modules": tuple(modules)}
    options["--use-distributed-optimizer"] = layout.zero > 0
    if layout.zero in SHARDING:
        options |= {
            "--use-megatron-fsdp": True,
            "--data-parallel-sharding-strategy": SHARDING[layout.zero],
            "--no-gradient-accumulation-fusion": True,
            "--ckpt-format": "fsdp_dtensor",
        }
    return options


def _types(recipe: Recipe) -> Options:
    options: Options = {"--bf16": True}
    if recipe.precision.forward == "fp8":
        options |= {"--fp8-format": "e4m3", "--fp8-recipe": "blockwise"}
    if recipe.precision.moments == "bf16":
        options |= {
            "--use-precision-aware-optimizer": True,
            "--exp-avg-dtype": "bf16",
            "--exp-avg-sq-dtype": "bf16",
        }
    if recipe.optimizer.name != "adam":
        options["--optimizer"] = recipe.optimizer.name
    return options


def stages_first(layout: TrainingLayout) -> bool:
    """Whether ranks stand as its ``--use-tp-pp-dp-mapping`` puts them.

    It wants attention and experts to have as many data-parallel ranks (`megatron/core/parallel_state.py`).
    """
    alike = layout.ep * layout.etp == layout.tp * layout.cp
    return layout.mapping.name == "pipeline-inside" and alike


def _missing(layout: TrainingLayout, model: ModelShape, started_by: str) -> str:
    """What of a layout Megatron-LM has no option for."""
    parts = []
    if layout.schedule not in ENGINES_OWN:
        parts.append(f"schedule {layout.schedule}, which is not in Megatron-LM: its own are {', '.join(ENGINES_OWN)}")
    apart = [name for name in RECOMPUTES[layout.recompute].modules if name not in MODULES]
    if apart and model.dense_layer_ids:
        parts.append(f"recomputing {', '.join(apart)} of dense layers alone")
    if layout.zero in SHARDING and layout.pp > 1:
        parts.append(f"ZeRO {layout.zero} is Megatron-FSDP's, which was not seen with a pipeline")
    if layout.mapped and not stages_first(layout):
        parts.append(f"ranks {layout.mapping.name} ({started_by})")
    return "; ".join(parts)
