"""A step as a timeline that opens in ui.perfetto.dev: Chrome's trace-event JSON.

One track per rank with a span per stage it goes through, a span "idle" inside it for the part of an exchange in which
it waits for peers, and counters: how many ranks compute, communicate and wait, and the mean rate on each kind of link
while an exchange is under way. What is idle is what the breakdown says (`moecast.sim.breakdown`); how much is exact,
and it is drawn at the exchange's beginning. Every track ends with the step: with waiting for the last rank, or for an
exchange of which `bound` does not know whose time it is. Times are in microseconds, as the format wants them.

Format: "Trace Event Format", Chromium project. Axes: S stage, G rank, J link.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moecast.files import write_text
from moecast.sim.breakdown import Waits, waits_for_peers
from moecast.sim.collectives.links import link_kinds
from moecast.sim.gains import link_load
from moecast.sim.network import Rung, find_rung
from moecast.sim.program import Compute, Exchange, Float, Stage, StepProgram, StepTimes
from moecast.sim.simulate import simulate_step

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

Event = dict[str, Any]

PROCESS = 0
_MICRO = 1e6
_DOING = ("compute", "exchange", "idle")


def step_timeline(
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    trace: RoutingTrace,
    step: Step,
    *,
    network: str | Rung = "fluid",
    seed: int = 0,
) -> dict[str, Any]:
    """Time one step and draw it; see `moecast.sim.simulate_step` for what it raises."""
    program, times = simulate_step(cluster, model, plan, trace, step, network=network, seed=seed)
    names = [f"rank {rank} ({cluster.gpus[gpu].name})" for rank, gpu in enumerate(plan.gpu_of_rank)]
    about = {
        "cluster": cluster.name,
        "model": model.name,
        "solver": plan.made_by.solver,
        "phase": step.phase,
        "network": find_rung(network).name,
        "step_time_s": times.step_time_s,
    }
    return program_timeline(program, times, rank_names=names, link_kind_J=link_kinds(cluster), about=about)


def program_timeline(
    program: StepProgram,
    times: StepTimes,
    *,
    rank_names: list[str] | None = None,
    link_kind_J: tuple[str, ...] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw a timed program.

    Parameters
    ----------
    rank_names
        What the tracks are called; None: "rank 0", ...
    link_kind_J
        The kind of each link, for the counters; None: no link counters.
    about
        Goes into the file's `otherData`.
    """
    names = rank_names or [f"rank {rank}" for rank in range(program.n_ranks)]
    waits = waits_for_peers(program, times)
    events = [*_names(names, about or {}), *_spans(program, times, waits), *_activity(program, times, waits)]
    if link_kind_J is not None:
        events += _link_rates(program, times, link_kind_J)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(about or {})}


def write_timeline(timeline: Mapping[str, Any], path: str | Path) -> None:
    """Write a timeline as JSON, whole or not at all."""
    write_text(path, json.dumps(timeline, separators=(",", ":"), allow_nan=False) + "\n")


def _names(rank_names: list[str], about: Mapping[str, Any]) -> Iterator[Event]:
    title = ", ".join(str(about[key]) for key in ("model", "cluster", "phase", "network") if key in about)
    yield {"ph": "M", "pid": PROCESS, "tid": 0, "name": "process_name", "args": {"name": title or "moecast step"}}
    for rank, name in enumerate(rank_names):
        yield {"ph": "M", "pid": PROCESS, "tid": rank, "name": "thread_name", "args": {"name": name}}
        yield {"ph": "M", "pid": PROCESS, "tid": rank, "name": "thread_sort_index", "args": {"sort_index": rank}}


def _spans(program: StepProgram, times: StepTimes, waits: Waits) -> Iterator[Event]:
    for index, stage in enumerate(program.stages):
        sent_G, received_G = _rank_bytes(stage, program.n_ranks)
        category = "compute" if isinstance(stage, Compute) else "exchange"
        for rank in range(program.n_ranks):
            enter, leave = times.enter_SG[index, rank], times.leave_SG[index, rank]
            args: dict[str, Any] = {} if stage.layer < 0 else {"MoE layer": stage.layer}
            if isinstance(stage, Exchange):
                args |= {"bytes sent": sent_G[rank], "bytes received": received_G[rank]}
            yield from _span(rank, stage.kind, category, enter, leave, args)
            yield from _span(rank, "idle", "idle", enter, enter + waits.idle_SG[index, rank], {})
    for rank, done in enumerate(times.leave_SG[-1]):
        at = done + waits.end_idle_G[rank]
        yield from _span(rank, "idle", "idle", done, at, {"waits for": "the last rank"})
        for index in np.flatnonzero(waits.end_fabric_SG[:, rank]).tolist():
            before, at = at, at + waits.end_fabric_SG[index, rank]
            yield from _span(rank, program.stages[index].kind, "exchange", before, at, {"waits for": "the last rank"})


def _span(rank: int, name: str, category: str, begin: float, end: float, args: dict[str, Any]) -> Iterator[Event]:
    """Draw what takes any time at all."""
    if end > begin:
        yield {
            "ph": "X", "pid": PROCESS, "tid": rank, "ts": float(begin) * _MICRO, "dur": float(end - begin) * _MICRO,
            "name": name, "cat": category, "args": args,
        }  # fmt: skip


def _rank_bytes(stage: Stage, n_ranks: int) -> tuple[list[float], list[float]]:
    """Bytes that leave and that reach each rank in an exchange."""
    if isinstance(stage, Compute):
        return [], []
    flows = stage.flows
    away_F = np.where(flows.source_rank_F != flows.destination_rank_F, flows.bytes_F, 0.0)
    sent_G = np.bincount(flows.source_rank_F, away_F, n_ranks)
    return sent_G.tolist(), np.bincount(flows.destination_rank_F, away_F, n_ranks).tolist()


def _activity(program: StepProgram, times: StepTimes, waits: Waits) -> Iterator[Event]:
    """Count the ranks that compute, that are in an exchange, and that wait, at every moment at which it changes."""
    changes: list[tuple[float, int, int]] = []  # when, what, one more or one less

    def during(what: str, begin_G: Float, end_G: Float) -> None:
        for begin, end in zip(begin_G.tolist(), end_G.tolist(), strict=True):
            if end > begin:
                changes.extend([(begin, _DOING.index(what), 1), (end, _DOING.index(what), -1)])

    for index, stage in enumerate(program.stages):
        begin_G = times.enter_SG[index] + waits.idle_SG[index]
        during("idle", times.enter_SG[index], begin_G)
        during("compute" if isinstance(stage, Compute) else "exchange", begin_G, times.leave_SG[index])
    done_G = times.leave_SG[-1] + waits.end_idle_G
    during("idle", times.leave_SG[-1], done_G)
    during("exchange", done_G, done_G + waits.end_fabric_SG.sum(axis=0))
    changes.sort()
    count = [0] * len(_DOING)
    for place, (at, what, more) in enumerate(changes):
        count[what] += more
        if place + 1 == len(changes) or changes[place + 1][0] > at:
            yield _counter("ranks", at, dict(zip(_DOING, count, strict=True)))


def _link_rates(program: StepProgram, times: StepTimes, link_kind_J: tuple[str, ...]) -> Iterator[Event]:
    """Show for each kind of link the part of its capacity in use, each exchange's bytes spread evenly over its time."""
    kinds = sorted(set(link_kind_J))
    of_kind_J = np.array([kinds.index(kind) for kind in link_kind_J])
    capacity = np.bincount(of_kind_J, program.capacity_J, len(kinds))
    changes = []
    for index, stage in enumerate(program.stages):
        if isinstance(stage, Exchange) and stage.flows.n:
            begin, end = times.enter_SG[index].min(), times.leave_SG[index].max()
            if end > begin:
                load_J = program.on_every_link(link_load(stage.flows, len(of_kind_J)))
                load = np.bincount(of_kind_J, load_J, len(kinds))
                changes += [(begin, load / (end - begin)), (end, -load / (end - begin))]
    changes.sort(key=lambda change: change[0])
    rate = np.zeros(len(kinds))
    used = np.sum([load > 0 for _, load in changes], axis=0) > 0 if changes else np.zeros(len(kinds), bool)
    for at, change in changes:
        rate = rate + change
        for kind in np.flatnonzero(used):
            yield _counter(f"{kinds[kind]} in use, %", at, {"%": round(max(0.0, 100 * rate[kind] / capacity[kind]), 6)})


def _counter(name: str, at_s: float, values: Mapping[str, float]) -> Event:
    return {"ph": "C", "pid": PROCESS, "tid": 0, "ts": at_s * _MICRO, "name": name, "args": dict(values)}
