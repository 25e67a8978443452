"""What a Prediction is made of, added up step by step.

Axes: S stage, G rank, L MoE layer, D EP group, J link.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.bottleneck import Bottleneck
from moecast.sim.collectives.links import link_kinds
from moecast.sim.forward import ForwardPass, Setting
from moecast.sim.prediction import BREAKDOWN_PARTS
from moecast.sim.program import Compute, Exchange, Flows, StepProgram, StepTimes

Float = npt.NDArray[np.float64]

TOP_LINKS = 3  # of each kind: a fabric has hundreds of links that are equally busy


class RoutingTally:
    """Balance, fan-out, crossings, bytes and loads, over all steps."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._balances: list[Float] = []
        self._load_LG = np.zeros((setting.plan.layers, setting.layout.n_ranks), np.int64)
        self._tokens = self._copies = self._remote = self._domain_copies = 0
        self._pairs = self._same = 0
        self._bytes = 0.0
        self._steps = 0
        self.most_rows = 0
        """The most choices that a rank served at one layer of one step."""

    def add(self, step: ForwardPass) -> None:
        """Take in a step."""
        traffic = step.traffic
        load_LG = traffic.rank_load_LG
        self._balances.append(balance(load_LG, self._setting.plan.groups))
        self._load_LG += load_LG
        self.most_rows = max(self.most_rows, int(load_LG.max(initial=0)))
        self._tokens += traffic.n_tokens * traffic.layers
        self._copies += int(traffic.copies_LSD.sum(dtype=np.int64))
        self._remote += int(
            traffic.copies_LSD.sum(dtype=np.int64) - np.trace(traffic.copies_LSD, axis1=1, axis2=2).sum()
        )
        self._domain_copies += int(traffic.domain_copies_LSN.sum(dtype=np.int64))
        self._pairs, self._same = self._pairs + traffic.pairs, self._same + traffic.same_rank_pairs
        self._bytes += step.dispatch_bytes()
        self._steps += 1

    def fields(self) -> dict[str, Any]:
        """Give the Prediction's fields; a balance of nothing is 1."""
        balances = np.concatenate(self._balances)
        pooled = balance(self._load_LG, self._setting.plan.groups)
        tokens = max(1, self._tokens)
        per_step_LG = self._load_LG / self._steps
        return {
            "balance": float(balances.mean()) if len(balances) else 1.0,
            "balance_p5": float(np.percentile(balances, 5)) if len(balances) else 1.0,
            "balance_pooled": float(pooled.mean()) if len(pooled) else 1.0,
            "fan_out": self._copies / tokens,
            "remote_fan_out": self._remote / tokens,
            "fan_out_domains": self._domain_copies / tokens,
            "crossings": 1 - self._same / self._pairs if self._pairs else 0.0,
            "dispatch_bytes": self._bytes / self._steps,
            "rank_load": tuple(per_step_LG.sum(0).tolist()),
            "rank_load_LG": tuple(tuple(row) for row in per_step_LG.tolist()),
        }


def balance(load_LG: npt.NDArray[np.int64], groups: int) -> Float:
    """Mean / max over the ranks of each EP group at each layer, those without any load left out."""
    load_DG = load_LG.reshape(-1, load_LG.shape[1] // groups)
    most_D = load_DG.max(axis=1)
    return np.asarray(load_DG.mean(axis=1)[most_D > 0] / most_D[most_D > 0])


class TimeTally:
    """Step times, breakdown, link use and bottleneck, over the steps that a network rung timed."""

    def __init__(self, setting: Setting) -> None:
        cluster = setting.layout.cluster
        self._kind_J = link_kinds(cluster)
        self._n_links = len(cluster.links)
        self._setting = setting
        self._bottleneck = Bottleneck(self._kind_J)
        self._units_J = np.zeros(len(setting.capacity_J))
        self._bytes_J = np.zeros(len(setting.capacity_J))
        self._parts = dict.fromkeys(BREAKDOWN_PARTS, 0.0)
        self.step_times_s: list[float] = []

    def add(self, program: StepProgram, times: StepTimes) -> None:
        """Take in a timed step."""
        self.step_times_s.append(times.step_time_s)
        for part, seconds in breakdown(program, times).items():
            self._parts[part] += seconds
        self._units_J += times.link_bytes_J
        self._bottleneck.add(program, times)
        for stage in program.stages:
            if isinstance(stage, Exchange):
                self._bytes_J += link_bytes(stage.flows, len(self._bytes_J), self._n_links)

    def fields(self) -> dict[str, Any]:
        """Give the Prediction's fields."""
        steps = len(self.step_times_s)
        name, share = self._bottleneck.name()
        return {
            "step_time_s": sum(self.step_times_s) / steps,
            "step_times_s": tuple(self.step_times_s),
            "breakdown_s": {part: seconds / steps for part, seconds in self._parts.items()},
            "overlapped_s": 0.0,  # no schedule so far runs communication under compute
            "bottleneck": name,
            "bottleneck_share": share,
            "link_utilisation": self._busiest_links(),
        }

    def _busiest_links(self) -> tuple[dict[str, Any], ...]:
        time_s = sum(self.step_times_s)
        used_J = self._units_J / (self._setting.capacity_J * time_s) if time_s else np.zeros_like(self._units_J)
        ranked = [int(link) for link in np.argsort(-used_J, kind="stable")]
        listed: Counter[str] = Counter()
        busiest = []
        for link in ranked:
            listed[self._kind_J[link]] += 1
            if listed[self._kind_J[link]] <= TOP_LINKS:
                busiest.append(link)
        return tuple(
            {
                "name": self._setting.link_names_J[link],
                "kind": self._kind_J[link],
                "bytes": float(self._bytes_J[link] / len(self.step_times_s)),
                "utilisation": float(used_J[link]),
            }
            for link in busiest
            if used_J[link] > 0
        )


def link_bytes(flows: Flows, n_links: int, n_real: int) -> Float:
    """Bytes on each link; all of a flow's on its issue link, whose units are seconds."""
    part_X = np.where(flows.link_X < n_real, flows.share_X, 1.0)
    return np.bincount(flows.link_X, np.repeat(flows.bytes_F, np.diff(flows.offsets_F1)) * part_X, n_links).astype(
        np.float64
    )


def breakdown(program: StepProgram, times: StepTimes) -> dict[str, float]:
    """Mean over ranks of the time in each part; what a rank waits, also at the end for the last one, is idle."""
    parts = dict.fromkeys(BREAKDOWN_PARTS, 0.0)
    spent_S = (times.leave_SG - times.enter_SG).mean(axis=1)
    busy_S = times.busy_SG.mean(axis=1)
    for index, stage in enumerate(program.stages):
        if isinstance(stage, Compute):
            parts[stage.kind] += float(spent_S[index])
        else:
            parts[stage.kind] += float(busy_S[index])
            parts["idle"] += float(spent_S[index] - busy_S[index])
    parts["idle"] += times.step_time_s - float(times.leave_SG[-1].mean())
    return parts
