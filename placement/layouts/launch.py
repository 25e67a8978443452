"""What to run: the options with which engines are started in a layout.

Sources: SGLang's server arguments and "Expert Parallelism" (docs.sglang.io), vLLM's "Expert Parallel Deployment" and
`vllm.config.parallel`, TensorRT-LLM's "Parallelism in TensorRT LLM" and `trtllm-serve`; read on 2026-11-28. None of
these commands was run. What engines have no option for stands in `abilities`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moecast.placement.layouts.abilities import no_option_for
from moecast.placement.layouts.space import layers_of_stages

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_layout import ServingLayout


PARTITIONS = {"sglang": "SGLANG_PP_LAYER_PARTITION", "vllm": "VLLM_PP_LAYER_PARTITION"}
"""Environment variables with the layers of each pipeline stage; TensorRT-LLM has them in its YAML file."""
Options = dict[str, str | int | bool | tuple[str, ...]]
"""Of a command: a name with its value or values, or True for a name alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How one engine is started in a layout.

    Parameters
    ----------
    engine
        Its name.
    command
        What starts it, options included; MODEL stands for the checkpoint.
    config
        The YAML file that goes with it (`config.yaml`); empty where there is none.
    cannot
        What of the layout no option of the engine says; empty where it says all.
    """

    engine: str
    command: str
    config: str = ""
    cannot: str = ""


def launches(
    layout: ServingLayout,
    *,
    experts: int,
    n_layers: int = 0,
    role: str = "",
    placement: Mapping[str, str] | None = None,
    started_by: str = "",
) -> tuple[Launch, ...]:
    """Start an instance in a layout with each serving engine.

    Parameters
    ----------
    experts
        Of a layer, which redundant ones are counted beside.
    n_layers
        Of the model: engines are told of stages that have not as many each. 0: nobody is.
    role
        `prefill` or `decode` where these stand on instances of their own.
    placement
        Files that hold the experts' placement, by engine.
    started_by
        What puts ranks on GPUs that are not consecutive.
    """
    files = placement or {}
    started = [start(layout, experts, role, files) for start in (_sglang, _vllm, _trtllm)]
    return tuple(_on_gpus(_cut(one, layout, n_layers), layout, started_by) for one in started)


def _cut(one: Launch, layout: ServingLayout, n_layers: int) -> Launch:
    """The same with the layers of each pipeline stage, where these are not as many."""
    counts = [len(stage) for stage in layers_of_stages(n_layers, layout.pp)]
    if len(set(counts)) == 1:
        return one
    if one.engine in PARTITIONS:
        return replace(one, command=f"{PARTITIONS[one.engine]}={','.join(map(str, counts))} {one.command}")
    return replace(one, config=f"{one.config}pp_partition: {counts}\n")


def _on_gpus(one: Launch, layout: ServingLayout, started_by: str) -> Launch:
    """The same with what is said of ranks that are not consecutive GPUs: engines have no option for them."""
    if not layout.mapped:
        return one
    told = f"ranks {layout.mapping.name} ({started_by})"
    return replace(one, cannot="; ".join(filter(None, (one.cannot, told))))


def _sglang(layout: ServingLayout, experts: int, role: str, files: Mapping[str, str]) -> Launch:
    redundant = layout.slots_per_rank(experts) * layout.ep - experts
    options: Options = {"--tp-size": layout.ranks_of_stage, "--pp-size": layout.pp}
    if layout.dp > 1:
        options |= {"--dp-size": layout.dp, "--enable-dp-attention": True}
    if layout.ep > 1:
        options["--ep-size"] = layout.ep
    if layout.dispatch == "per_rank":
        options["--moe-a2a-backend"] = "flashinfer"
    if layout.dispatch in ("per_choice", "per_domain"):
        mode = "low_latency" if layout.dispatch == "per_choice" else "normal"
        options |= {"--moe-a2a-backend": "deepep", "--deepep-mode": mode if role else "auto"}
    if redundant:
        options["--ep-num-redundant-experts"] = redundant
    if "sglang" in files:
        options["--init-expert-location"] = files["sglang"]
    options["--enable-two-batch-overlap"] = layout.schedule == "two-batch"
    if role == "prefill":
        options["--chunked-prefill-size"] = layout.sequences  # SGLang deals it to the data-parallel ranks
    else:
        options["--max-running-requests"] = layout.sequences
    if role:
        options["--disaggregation-mode"] = role
    return Launch(
        engine="sglang",
        command=command_line("python -m sglang.launch_server --model-path MODEL", options),
        cannot="; ".join(no_option_for("sglang", layout)),
    )


def _vllm(layout: ServingLayout, experts: int, role: str, files: Mapping[str, str]) -> Launch:
    options: Options = {
        "--tensor-parallel-size": layout.tp, "--data-parallel-size": layout.dp,
        "--pipeline-parallel-size": layout.pp, "--enable-expert-parallel": layout.ep > 1,
    }  # fmt: skip
    if layout.cp > 1:
        options["--decode-context-parallel-size"] = layout.cp
    backends = {
        "per_choice": "deepep_low_latency", "per_domain": "deepep_high_throughput", "per_rank": "flashinfer_all2allv",
        "all_gather": "allgather_reducescatter",
    }  # fmt: skip
    if layout.dispatch in backends:
        options["--all2all-backend"] = backends[layout.dispatch]
    redundant = layout.slots_per_rank(experts) * layout.ep - experts
    if redundant or "vllm" in files:
        options |= {"--enable-eplb": True, "--eplb-config": json.dumps({"num_redundant_experts": redundant})}
    if layout.schedule == "two-batch":
        options["--enable-dbo"] = True
    options["--max-num-batched-tokens" if role == "prefill" else "--max-num-seqs"] = layout.batch
    apart = ("prefill apart: name a connector with --kv-transfer-config",) if role else ()
    cannot = "; ".join((*no_option_for("vllm", layout), *apart))
    return Launch(engine="vllm", command=command_line("vllm serve MODEL", options), cannot=cannot)


def _trtllm(layout: ServingLayout, experts: int, role: str, files: Mapping[str, str]) -> Launch:
    del experts
    options: Options = {
        "--tp_size": layout.ranks_of_stage, "--ep_size": layout.ep, "--pp_size": layout.pp,
        "--max_num_tokens" if role == "prefill" else "--max_batch_size": layout.batch, "--config": "config.yaml",
    }  # fmt: skip
    lines = [f"enable_attention_dp: {str(layout.dp > 1).lower()}", f"moe_expert_parallel_size: {layout.ep}"]
    lines += [f"moe_tensor_parallel_size: {layout.etp}"]
    if "trtllm" in files:
        lines += ["moe_config:", f"  load_balancer: {files['trtllm']}"]
    apart = ("prefill apart: start both with `trtllm-serve disaggregated`",) if role else ()
    return Launch(
        engine="trtllm",
        command=command_line("trtllm-serve MODEL", options),
        config="\n".join(lines) + "\n",
        cannot="; ".join((*no_option_for("trtllm", layout), *apart)),
    )


def command_line(start: str, options: Options) -> str:
    """One line: what is off, and sizes of 1, are left out."""
    said = []
    for name, value in options.items():
        if value is False or (value == 1 and value is not True and name.endswith("size")):
            continue
        values = value if isinstance(value, tuple) else (str(value),)
        said.append(name if value is True else " ".join((name, *map(_quoted, values))))
    first, _, comment = start.partition("  # ")
    return " ".join([first, *said]) + (f"  # {comment}" if comment else "")


def _quoted(text: str) -> str:
    return f"'{text}'" if set(text) & set(' {}"|*()') else text
