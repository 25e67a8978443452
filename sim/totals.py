"""What a Prediction is made of, added up step by step.

Axes: G rank, S source rank, M member of its EP group, L MoE layer, D EP group, J link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.breakdown import breakdown
from moecast.sim.busy import add_link_bytes
from moecast.sim.collectives.links import link_kinds
from moecast.sim.collectives.template import CountedFlows
from moecast.sim.forward import ForwardPass
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import BREAKDOWN_PARTS, Exchange, Flows, StepProgram, StepTimes

Float = npt.NDArray[np.float64]

MOST_SHOWN = 256  # ranks of a matrix that people look at
TOP_LINKS = 3  # of each kind: a fabric has hundreds of links that are equally busy


class RoutingTotals:
    """Balance, fan-out, crossings, bytes and loads, over all steps."""

    def __init__(self, placed: PlacedModel) -> None:
        self._placed = placed
        self._balances: list[Float] = []
        self._load_LG = np.zeros((placed.plan.layers, placed.sites.n_ranks), np.int64)
        self._tokens = self._copies = self._remote = self._domain_copies = 0
        self._pairs = self._same = 0
        self._bytes = 0.0
        self._copies_SM = np.zeros((placed.sites.n_ranks, placed.sites.n_members), np.int64)
        self._steps = 0
        self.most_rows = 0
        """The most choices that a rank served at one layer of one step."""
        self.most_tokens = 0
        """The most tokens that a rank attended for in one step."""

    def add(self, step: ForwardPass) -> None:
        """Take in a step."""
        traffic = step.traffic
        load_LG = traffic.rank_load_LG
        self._balances.append(balance(load_LG, self._placed.plan.groups))
        self._load_LG += load_LG
        self.most_rows = max(self.most_rows, int(load_LG.max(initial=0)))
        self.most_tokens = max(self.most_tokens, int(step.attended_at(0).max()))
        self._tokens += traffic.n_tokens
        copies_SM = traffic.copies_LSM.sum(axis=0, dtype=np.int64)
        own_S = np.take_along_axis(copies_SM, self._placed.sites.member_G[:, None].astype(np.int64), axis=1)
        self._copies += int(copies_SM.sum())
        self._remote += int(copies_SM.sum() - own_S.sum())
        self._domain_copies += int(traffic.domain_copies_LSA.sum(dtype=np.int64))
        self._pairs, self._same = self._pairs + traffic.pairs, self._same + traffic.same_rank_pairs
        self._bytes += step.dispatch_bytes()
        self._copies_SM += self._travelled(step, copies_SM)
        self._steps += 1

    def _travelled(self, step: ForwardPass, copies_SM: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Copies of all layers that travel, by source and member of its group, own rank included."""
        traffic, mode = step.traffic, self._placed.mode
        if self._placed.experts_are_summed:
            return np.zeros_like(copies_SM)
        if mode.gathers:
            return np.broadcast_to(traffic.tokens_LG.sum(axis=0, dtype=np.int64)[:, None], copies_SM.shape)
        return traffic.choices_LSM.sum(axis=0, dtype=np.int64) if mode.per_choice else copies_SM

    @property
    def empty_layers(self) -> int:
        """MoE layers at which no step chose anything: they were not recorded, or are none."""
        return int((~self._load_LG.any(axis=1)).sum())

    def fields(self) -> dict[str, Any]:
        """Give the Prediction's fields; a balance of nothing is 1."""
        balances = np.concatenate(self._balances)
        pooled = balance(self._load_LG, self._placed.plan.groups)
        # tokens of an empty layer would pull the means towards 0
        tokens = max(1, self._tokens * (self._placed.plan.layers - self.empty_layers))
        per_step_LG = self._load_LG / self._steps
        return {
            "balance": float(balances.mean()) if len(balances) else 1.0,
            "balance_p5": float(np.percentile(balances, 5)) if len(balances) else 1.0,
            "overload": float((1 / balances).mean()) if len(balances) else 1.0,
            "balance_pooled": float(pooled.mean()) if len(pooled) else 1.0,
            "fan_out": self._copies / tokens,
            "remote_fan_out": self._remote / tokens,
            "fan_out_domains": self._domain_copies / tokens,
            "crossings": 1 - self._same / self._pairs if self._pairs else 0.0,
            "dispatch_bytes": self._bytes / self._steps,
            "traffic_SD": self._traffic_SD(),
            "rank_load": tuple(per_step_LG.sum(0).tolist()),
            "rank_load_LG": tuple(tuple(row) for row in per_step_LG.tolist()),
        }

    def _traffic_SD(self) -> tuple[tuple[float, ...], ...]:
        """Bytes dispatched between ranks, or between domains where ranks are too many to look at."""
        sites = self._placed.sites
        if sites.n_ranks > MOST_SHOWN:
            domain_G = sites.domain_G
            copies_SD = np.zeros((domain_G.max() + 1,) * 2, np.int64)
            np.add.at(copies_SD, (domain_G[:, None], domain_G[sites.peer_SM]), self._copies_SM)
        else:
            copies_SD = sites.to_ranks(self._copies_SM)
        bytes_SD = copies_SD * (self._placed.dispatch_flows.copy_bytes / self._steps)
        return tuple(tuple(row) for row in bytes_SD.tolist())


def balance(load_LG: npt.NDArray[np.int64], groups: int) -> Float:
    """Mean / max over the ranks of each EP group at each layer, those without any load left out."""
    load_DG = load_LG.reshape(len(load_LG) * groups, -1)
    most_D = load_DG.max(axis=1)
    return np.asarray(load_DG.mean(axis=1)[most_D > 0] / most_D[most_D > 0])


def shares_of(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each part of the whole; of nothing, nothing."""
    whole = sum(seconds.values())
    return {part: value / whole if whole else 0.0 for part, value in seconds.items()}


class TimeTotals:
    """Step times, breakdown, link use and traffic between ranks, over the steps that a network rung timed."""

    def __init__(self, placed: PlacedModel) -> None:
        cluster = placed.sites.cluster
        self._kind_J = link_kinds(cluster)
        self._n_links = len(cluster.links)
        self._placed = placed
        self._units_J = np.zeros(len(placed.capacity_J))
        self._bytes_J = np.zeros(len(placed.capacity_J))
        self._parts = dict.fromkeys(BREAKDOWN_PARTS, 0.0)
        self._layer_parts = dict.fromkeys(BREAKDOWN_PARTS, 0.0)
        self._path_s = dict.fromkeys(BREAKDOWN_PARTS, 0.0)
        self._overlapped_s = self._held_up_s = 0.0
        self.step_times_s: list[float] = []

    def add(self, program: StepProgram, times: StepTimes, load_LG: npt.NDArray[np.int64]) -> None:
        """Take in a timed step and the choices that each rank served in it."""
        # all of them where nothing is chosen anywhere
        used_L = np.asarray(load_LG.any(axis=1) | ~load_LG.any())
        self.step_times_s.append(times.step_time_s)
        where = breakdown(program, times, used_L)
        for part in BREAKDOWN_PARTS:
            self._parts[part] += where.step[part]
            self._layer_parts[part] += where.layers[part] / int(used_L.sum())
            self._path_s[part] += where.path_s[part]
        self._overlapped_s += where.overlapped_s
        self._held_up_s += where.held_up_s
        self._units_J += times.link_bytes_J
        bytes_J = np.zeros_like(self._bytes_J)
        for flows in _flows_of(program):
            add_link_bytes(flows, self._n_links, bytes_J)
        self._bytes_J += program.on_every_link(bytes_J)

    def fields(self) -> dict[str, Any]:
        """Give the Prediction's fields."""
        steps = len(self.step_times_s)
        parts = self._parts if self._placed.model.is_whole else self._layer_parts
        return {
            "layer_time_s": sum(self._layer_parts.values()) / steps,
            "step_time_s": sum(self.step_times_s) / steps,
            "step_times_s": tuple(self.step_times_s),
            "breakdown_s": {part: seconds / steps for part, seconds in parts.items()},
            "overlapped_s": self._overlapped_s / steps,
            "held_up_s": self._held_up_s / steps,
            "critical_path": shares_of(self._path_s),
            "link_utilisation": self._busiest_links(),
        }

    def _busiest_links(self) -> tuple[dict[str, Any], ...]:
        time_s = sum(self.step_times_s)
        used_J = self._units_J / (self._placed.capacity_J * time_s) if time_s else np.zeros_like(self._units_J)
        ranked = [int(link) for link in np.argsort(-used_J, kind="stable")]
        listed: Counter[str] = Counter()
        busiest = []
        for link in ranked:
            listed[self._kind_J[link]] += 1
            if listed[self._kind_J[link]] <= TOP_LINKS:
                busiest.append(link)
        return tuple(
            {
                "name": self._placed.link_names_J[link],
                "kind": self._kind_J[link],
                "bytes": float(self._bytes_J[link] / len(self.step_times_s)),
                "utilisation": float(used_J[link]),
            }
            for link in busiest
            if used_J[link] > 0
        )


def _flows_of(program: StepProgram) -> Iterator[Flows]:
    """All flows of a step; exchanges of one template together, since what is asked of them adds up."""
    counted: dict[int, CountedFlows] = {}
    for task in program.tasks:
        if not isinstance(task, Exchange):
            continue
        if isinstance(task.flows, CountedFlows):
            key = id(task.flows.template)
            counted[key] = task.flows.with_counts_of(counted.get(key))
        else:
            yield task.fill()
    yield from (flows.fill() for flows in counted.values())
