"""A plan's own uneven all-to-alls on real processes, every byte checked, every rank timed.

Axes: W step, L MoE layer, G rank, R row.
"""

from __future__ import annotations

import datetime as dt
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from moecast import __version__
from moecast.errors import MoecastError
from moecast.sim import ModelShape, Plan, Sites, Step, Workload, draw_steps
from moecast.sim.checks import check_question
from moecast.sim.context.shared import home_ranks
from moecast.sim.dispatch_type import dispatch_type_of
from moecast.topology import Cluster, Hardware
from moecast.traces import RoutingTrace
from moecast.validate.experts import ExpertWork
from moecast.validate.identity import MODE, question_hashes
from moecast.validate.job import Job
from moecast.validate.measurement import Measurement
from moecast.validate.rows import Rows
from moecast.validate.served import Served, serve

Exchange = Callable[[Tensor, Tensor, list[int], list[int], dist.ProcessGroup], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How a replay measures: each exchange runs `warmup` times, then `repeats` times timed; `experts` runs them too."""

    repeats: int = 5
    warmup: int = 2
    experts: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, least in (("repeats", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                rule = f"must be at least {least}"
                raise MoecastError(rule, field=name, value=getattr(self, name))


def exchange_rows(
    received: Tensor, sent: Tensor, received_counts: list[int], sent_counts: list[int], group: dist.ProcessGroup
) -> None:
    """Send rows, ordered by destination, and receive rows, ordered by source, in one uneven all-to-all."""
    dist.all_to_all_single(received, sent, received_counts, sent_counts, group=group)


def replay(
    job: Job,
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    trace: RoutingTrace,
    workload: Workload,
    *,
    effort: Effort | None = None,
    exchange: Exchange = exchange_rows,
) -> Measurement:
    """Run every exchange of a workload's steps for real, and time it.

    All ranks call this with the same arguments.

    Parameters
    ----------
    job
        This process; it stands for the rank of the same number.
    cluster
        Where the plan's ranks are said to stand: the replica rule `nearest` asks for domains.
    effort
        None: the defaults of `Effort`.
    exchange
        What moves the rows; tests put a faulty one in.

    Raises
    ------
    MoecastError
        The plan cannot be replayed, ranks were given different arguments, or a row arrived damaged
        or misplaced.
    """
    effort = effort or Effort()
    check_question(cluster, model, plan, trace)
    identity = question_hashes(plan, trace, workload)
    job.check_agreement(json.dumps(identity, sort_keys=True))
    layout = Sites.of(cluster, plan)
    steps = draw_steps(trace, workload, ranks=plan.dp)
    group = _join_ep_group(job, plan)
    work = ExpertWork.of(model, plan, job.device) if effort.experts else None
    sizes = row_bytes(model, plan, cluster.hardware)
    runs = [
        _StepReplay(job, plan, sizes, serve_step(layout, plan, trace, step), group, effort, work, exchange)
        for step in steps
    ]
    seconds_WLX = np.array([run.layers() for run in runs])
    seconds_GWLX = job.gather(seconds_WLX)
    dispatch_bytes, combine_bytes, rows = (job.sum(sum(run.moved[i] for run in runs)) for i in range(3))
    return Measurement(
        **identity,
        model=model.name,
        dispatch=MODE,
        ranks=plan.ranks,
        layers=plan.layers,
        steps=len(steps),
        dispatch_s_WLG=_nested(seconds_GWLX[..., 0]),
        combine_s_WLG=_nested(seconds_GWLX[..., 1]),
        expert_s_WLG=_nested(seconds_GWLX[..., 2]) if effort.experts else None,
        dispatch_bytes=dispatch_bytes / len(steps),
        combine_bytes=combine_bytes / len(steps),
        row_bytes=sizes,
        rows_checked=int(rows),
        repeats=effort.repeats,
        warmup=effort.warmup,
        backend=job.backend,
        hardware=job.device_names(),
        software=_software(),
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def serve_step(sites: Sites, plan: Plan, trace: RoutingTrace, step: Step) -> Served:
    """Send a step's choices to slots, its tokens at home where the simulator has them."""
    choices_TLK, home_T = trace.experts_TLK[step.token_T], home_ranks(plan, step, sites.domain_G)
    return serve(plan, sites.domain_G, choices_TLK, home_T, node_G=sites.node_G)


def row_bytes(model: ModelShape, plan: Plan, hardware: Hardware) -> dict[str, int]:
    """Bytes of a dispatched and of a combined row, as the simulator counts them: the engine may say what is sent."""
    return {
        "dispatch": model.copy_bytes(dispatch_type_of(plan, model, hardware)),
        "combine": model.copy_bytes(plan.combine_type or "bf16"),
    }


class _StepReplay:
    """One step on one rank."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        row_bytes: dict[str, int],
        served: Served,
        group: dist.ProcessGroup,
        effort: Effort,
        work: ExpertWork | None,
        exchange: Exchange,
    ) -> None:
        self.job, self.plan, self.served, self.group, self.effort, self.work = job, plan, served, group, effort, work
        self.exchange = exchange
        self.row_bytes = row_bytes
        # bytes leaving this rank to dispatch and to combine, rows it checked
        self.moved = [0, 0, 0]

    def layers(self) -> list[tuple[float, float, float]]:
        """Run all layers; seconds of dispatch, combine and experts."""
        return [self._layer(layer) for layer in range(self.plan.layers)]

    def _layer(self, layer: int) -> tuple[float, float, float]:
        rank = self.job.rank
        token_R, choice_R = self.served.choices_from(rank, layer)
        mine = Rows(source_R=np.full(len(token_R), rank), token_R=token_R, choice_R=choice_R, layer=layer)
        to_G = self._counts(self.served.rank_TLK[token_R, layer, choice_R])
        token_R, choice_R = self.served.choices_to(rank, layer)
        source_R = self.served.source_T[token_R].astype(np.int64)
        theirs = Rows(source_R=source_R, token_R=token_R, choice_R=choice_R, layer=layer)
        from_G = self._counts(source_R)
        dispatch_s = self._exchange_s("dispatch", mine, theirs, to_G, from_G, announce=True)
        slot_R = self.served.slot_TLK[token_R, layer, choice_R]
        expert_s = self.work.median_s(self.job, slot_R, self.effort) if self.work else 0.0
        combine_s = self._exchange_s("combine", theirs.back(), mine.back(), from_G, to_G, announce=False)
        return dispatch_s, combine_s, expert_s

    def _counts(self, rank_R: npt.NDArray[np.integer]) -> list[int]:
        first = int(self.plan.layout.peers_of_ranks("ep")[self.job.rank, 0])
        counts: list[int] = np.bincount(rank_R - first, minlength=self.plan.ep).tolist()
        return counts

    def _exchange_s(
        self, name: str, out: Rows, expected: Rows, out_counts: list[int], in_counts: list[int], *, announce: bool
    ) -> float:
        """Time one exchange and check what came; `announce` sends the counts ahead, as a real dispatch must."""
        width, device = self.row_bytes[name], self.job.device
        sent, wanted = out.fill(width, device), expected.fill(width, device)
        received = torch.zeros_like(wanted)
        announced = torch.tensor(out_counts, device=device)
        heard = torch.zeros_like(announced)

        def run() -> None:
            if announce:
                dist.all_to_all_single(heard, announced, group=self.group)
            self.exchange(received, sent, in_counts, out_counts, self.group)

        taken = self.job.median_s(run, repeats=self.effort.repeats, warmup=self.effort.warmup)
        if announce and heard.tolist() != in_counts:
            raise MoecastError(
                f"rank {self.job.rank} heard of {heard.tolist()} rows, should be {in_counts}", field=name
            )
        check_rows(received, wanted, expected, place=f"{name} of layer {out.layer} at rank {self.job.rank}")
        own = out_counts[int(self.plan.layout.member_G[self.job.rank])]
        self.moved[0 if name == "dispatch" else 1] += (len(out) - own) * width
        self.moved[2] += len(expected)
        return taken


def check_rows(received: Tensor, wanted: Tensor, rows: Rows, *, place: str) -> None:
    """Compare what came with what the whole routing says must come, byte by byte.

    Raises
    ------
    MoecastError
        Names the first byte that differs and whose row it should have been.
    """
    if torch.equal(received, wanted):
        return
    row, byte = (int(i) for i in (received != wanted).nonzero()[0])
    raise MoecastError(
        f"{place}: byte {byte} of row {row} (token {rows.token_R[row]} of rank "
        f"{rows.source_R[row]}, choice {rows.choice_R[row]}) is {int(received[row, byte])}, should "
        f"be {int(wanted[row, byte])}",
        field="replay",
    )


def _join_ep_group(job: Job, plan: Plan) -> dist.ProcessGroup:
    """Make every EP group's process group, as all ranks must, and keep this rank's."""
    groups: list[dist.ProcessGroup] = [dist.new_group(ranks) for ranks in plan.layout.peers("ep").tolist()]
    return groups[int(plan.layout.group_G[job.rank])]


def _nested(seconds_GWL: npt.NDArray[np.float64]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    steps = np.moveaxis(seconds_GWL, 0, -1).tolist()
    return tuple(tuple(tuple(rank_G) for rank_G in layers) for layers in steps)


def _software() -> dict[str, str]:
    versions = {"moecast": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if torch.version.cuda:
        versions |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}  # type: ignore[no-untyped-call]
    return versions
