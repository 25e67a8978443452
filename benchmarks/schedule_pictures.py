"""Draw the pictures of docs/schedules.md (a test draws them again): ``python benchmarks/schedule_pictures.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moecast.sim import Plan, Step, load_model
from moecast.sim.forward import ForwardPass
from moecast.sim.network import Fluid
from moecast.sim.placed_model import PlacedModel
from moecast.sim.schedules import program_of
from moecast.sim.schedules.picture import draw_order, draw_program
from moecast.sim.schedules.pipeline import PIPELINE_SCHEDULES, CellSeconds, Pipeline, make_order, time_order
from moecast.topology import load_cluster
from moecast.traces import RoutingTrace, TraceMeta

NODES, LAYERS, TOKENS = 2, (10, 11), {"prefill": 4096, "decode": 128}
FORWARDS = (("sequential", "prefill"), ("shared-beside", "prefill"), ("chunked:2", "prefill"), ("fsmoe:2", "prefill"),
            ("two-batch", "prefill"), ("two-batch", "decode"), ("token-weave", "prefill"))  # fmt: skip
SHARED, EXCHANGES = 4, ("ring", "token-ring")  # ranks that share sequences, and how
SIZES = [Pipeline(pp=4, virtual=virtual, microbatches=count) for virtual, count in ((1, 10), (2, 8))]
EVEN = CellSeconds(forward_s=1.0, inputs_s=1.0, weights_s=1.0)


def pictures() -> Iterator[tuple[str, str]]:
    """Yield each picture with the name of its file."""
    for schedule, phase in FORWARDS:
        yield f"{schedule.replace(':', '-')}-{phase}.svg", two_layers(schedule, phase)
    for exchange in EXCHANGES:
        yield f"{exchange}-prefill.svg", two_layers("sequential", "prefill", cp=SHARED, exchange=exchange)
    for pipeline in PIPELINE_SCHEDULES:
        sizes = next(size for size in SIZES if pipeline.supports(size) is None)
        order = make_order(pipeline, sizes)
        timed = time_order(order, [EVEN] * len(order.chunks.rank_C))
        yield f"{pipeline.name}.svg", draw_order(timed, title=f"{pipeline.name}: {sizes}")


def two_layers(schedule: str, phase: str, *, cp: int = 1, exchange: str = "ring") -> str:
    """Two MoE layers of DeepSeek-V3 on two nodes of eight H200s, experts chosen evenly at random, by fluid.

    Prompts are as long as `cp` ranks have tokens.
    """
    model = load_model("deepseek-v3").of_layers(LAYERS)
    cluster = load_cluster("dgx-h200", nodes=NODES)
    plan = Plan.contiguous(model, cluster).with_(schedule=schedule, cp=cp, context_exchange=exchange)
    if schedule == "token-weave":
        plan = plan.with_(tp=8, sequence_parallel=False)
    tokens = TOKENS[phase] * plan.ranks
    rng = np.random.default_rng(0)
    choices = rng.permuted(np.broadcast_to(np.arange(model.experts, dtype=np.uint16), (4096, model.experts)), axis=1)
    trace = RoutingTrace(
        meta=TraceMeta(model="even", layers=2, experts=model.experts, choices=model.choices),
        experts_TLK=np.stack([choices[:, :8], choices[:, 8:16]], axis=1),
        sequence_T=np.arange(4096, dtype=np.uint32),
        position_T=np.zeros(4096, np.uint32),
        phase_T=np.ones(4096, np.uint8),
        topic_T=np.full(4096, -1, np.int16),
    )
    step = Step(
        token_T=np.arange(tokens) % 4096,
        source_T=np.arange(tokens, dtype=np.int32) // (tokens // plan.dp),
        context_T=np.arange(tokens) % (4096 * cp) + 1 if phase == "prefill" else np.full(tokens, 4096),
        phase=phase,
    )
    program = program_of(ForwardPass.of(PlacedModel.of(cluster, model, plan, phase=phase), trace, step))
    return draw_program(program, Fluid().run(program), title=f"{schedule if cp == 1 else exchange}, {phase}")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs" / "schedules")
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures():
        (folder / name).write_text(picture, encoding="utf-8")
        print(folder / name)
