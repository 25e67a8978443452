"""A step as a timeline that opens in ui.perfetto.dev: Chrome's trace-event JSON.

One track per rank, or per rank and stream where there are several, with a span per task it goes
through, a span "idle" inside it for the part of an exchange in which it waits for peers, and
counters: how many ranks compute, communicate and wait, and the mean rate on each kind of link while
an exchange is under way. What is idle is what the breakdown says (`moecast.sim.breakdown`), where
tasks stand on one stream, else all time until the last peer enters; how much is exact, and it is
drawn at the exchange's beginning. Of tasks on one stream every track ends with the step: with
waiting for the last rank, or for an exchange of which `bound` does not know whose time it is. A
process of its own has the critical path. Times are in microseconds, as the format wants them.

Format: "Trace Event Format", Chromium project. Axes: S task, G rank, R rank of a task, J link.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moecast.files import write_text
from moecast.sim.breakdown import IdleTimes, waits_for_peers
from moecast.sim.busy import add_link_units
from moecast.sim.collectives.links import link_kinds
from moecast.sim.critical_path import NO_RANK, PathPart, critical_path
from moecast.sim.network import Rung, find_rung
from moecast.sim.program import Compute, Exchange, Float, StepProgram, StepTimes, Task
from moecast.sim.simulate import simulate_step

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

Event = dict[str, Any]

PROCESS, PATH_PROCESS = 0, 1
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
    idling = waits_for_peers(program, times)
    events = [*_names(program, names, about or {}), *_spans(program, times, idling), *_activity(program, times, idling)]
    events += _path(program, critical_path(program, times, idling.peer_S), names)
    if link_kind_J is not None:
        events += _link_rates(program, times, link_kind_J)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(about or {})}


def write_timeline(timeline: Mapping[str, Any], path: str | Path) -> None:
    """Write a timeline as JSON, whole or not at all."""
    write_text(path, json.dumps(timeline, separators=(",", ":"), allow_nan=False) + "\n")


def _names(program: StepProgram, rank_names: list[str], about: Mapping[str, Any]) -> Iterator[Event]:
    title = ", ".join(str(about[key]) for key in ("model", "cluster", "phase", "network") if key in about)
    yield {"ph": "M", "pid": PROCESS, "tid": 0, "name": "process_name", "args": {"name": title or "moecast step"}}
    streams = program.streams
    for rank, name in enumerate(rank_names):
        for at, stream in enumerate(streams):
            full = name if len(streams) == 1 else f"{name}, {stream or 'transfers'}"
            place = rank * len(streams) + at
            yield {"ph": "M", "pid": PROCESS, "tid": place, "name": "thread_name", "args": {"name": full}}
            yield {"ph": "M", "pid": PROCESS, "tid": place, "name": "thread_sort_index", "args": {"sort_index": place}}


def _spans(program: StepProgram, times: StepTimes, idling: IdleTimes) -> Iterator[Event]:
    # Once: `program.streams` walks all tasks, and a training step has a hundred thousand spans.
    place_of = {stream: at for at, stream in enumerate(program.streams)}
    for index, task in enumerate(program.tasks):
        sent_R, received_R = _rank_bytes(task)
        category = "compute" if isinstance(task, Compute) else "exchange"
        stays = zip(
            times.enter_S[index].tolist(), times.leave_S[index].tolist(), idling.idle_S[index].tolist(), strict=True
        )
        for at, (rank, (enter, leave, idle)) in enumerate(zip(program.ranks_of(task).tolist(), stays, strict=True)):
            args: dict[str, Any] = {} if task.layer < 0 else {"MoE layer": task.layer}
            if task.microbatch >= 0:
                args["microbatch"] = task.microbatch
            if isinstance(task, Exchange):
                args |= {"bytes sent": sent_R[at], "bytes received": received_R[at]}
            track = rank * len(place_of) + place_of[task.stream]
            if task.stream is None:  # several at once: only while they move
                yield from _span(track, task.kind, category, enter + idle, leave, args)
                continue
            yield from _span(track, task.kind, category, enter, leave, args)
            yield from _span(track, "idle", "idle", enter, enter + idle, {})
    if program.is_sequence:
        yield from _ends(program, times, idling)


def _path(program: StepProgram, path: Sequence[PathPart], rank_names: list[str]) -> Iterator[Event]:
    """Draw the critical path: what it goes through, and on which rank."""
    for name in ("process_name", "thread_name"):
        yield {"ph": "M", "pid": PATH_PROCESS, "tid": 0, "name": name, "args": {"name": "critical path"}}
    for part in path:
        task = program.tasks[part.task]
        args: dict[str, Any] = {"on": "no rank that is known" if part.rank == NO_RANK else rank_names[part.rank]}
        if task.microbatch >= 0:
            args["microbatch"] = task.microbatch
        category = "compute" if isinstance(task, Compute) else "exchange"
        for span in _span(0, task.kind, category, part.begin_s, part.end_s, args):
            yield span | {"pid": PATH_PROCESS}


def _ends(program: StepProgram, times: StepTimes, idling: IdleTimes) -> Iterator[Event]:
    """What each rank does after its last task."""
    for rank, done in enumerate(times.leave_S[-1].tolist()):
        at = done + idling.end_idle_G[rank]
        yield from _span(rank, "idle", "idle", done, at, {"waits for": "the last rank"})
        for index, end_fabric_R in enumerate(idling.end_fabric_S):
            if end_fabric_R[rank]:
                before, at = at, at + end_fabric_R[rank]
                kind = program.tasks[index].kind
                yield from _span(rank, kind, "exchange", before, at, {"waits for": "the last rank"})


def _span(rank: int, name: str, category: str, begin: float, end: float, args: dict[str, Any]) -> Iterator[Event]:
    """Draw what takes any time at all."""
    if end > begin:
        yield {
            "ph": "X",
            "pid": PROCESS,
            "tid": rank,
            "ts": float(begin) * _MICRO,
            "dur": float(end - begin) * _MICRO,
            "name": name,
            "cat": category,
            "args": args,
        }


def _rank_bytes(task: Task) -> tuple[list[float], list[float]]:
    """Bytes that leave and that reach each rank in an exchange."""
    if isinstance(task, Compute):
        return [], []
    flows, n_ranks = task.fill(), task.n_ranks
    away_F = np.where(flows.source_rank_F != flows.destination_rank_F, flows.bytes_F, 0.0)
    sent_G = np.bincount(flows.source_rank_F, away_F, n_ranks)
    return sent_G.tolist(), np.bincount(flows.destination_rank_F, away_F, n_ranks).tolist()


def _activity(program: StepProgram, times: StepTimes, idling: IdleTimes) -> Iterator[Event]:
    """Count the ranks that compute, that are in an exchange, and that wait, at every moment at which it changes."""
    changes: list[tuple[float, int, int]] = []  # when, what, one more or one less

    def during(what: str, begin_G: Float, end_G: Float) -> None:
        for begin, end in zip(begin_G.tolist(), end_G.tolist(), strict=True):
            if end > begin:
                changes.extend([(begin, _DOING.index(what), 1), (end, _DOING.index(what), -1)])

    for index, task in enumerate(program.tasks):
        begin_R = times.enter_S[index] + idling.idle_S[index]
        if task.stream is not None:
            during("idle", times.enter_S[index], begin_R)
        during("compute" if isinstance(task, Compute) else "exchange", begin_R, times.leave_S[index])
    if program.is_sequence:
        done_G = times.leave_S[-1] + idling.end_idle_G
        during("idle", times.leave_S[-1], done_G)
        during("exchange", done_G, done_G + np.sum(idling.end_fabric_S, axis=0))
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
    for index, task in enumerate(program.tasks):
        if isinstance(task, Exchange) and (flows := task.fill()).n:
            begin, end = times.enter_S[index].min(), times.leave_S[index].max()
            if end > begin:
                load_J = np.zeros(len(of_kind_J))
                add_link_units(flows, flows.bytes_F, load_J)
                load_J = program.on_every_link(load_J)
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
