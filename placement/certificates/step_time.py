"""The certificate: a step time that no legal plan with these slots can beat.

It bounds the mean step time by the ``bound`` rung from below, and so by ``fluid``, for every
placement of the experts. What a plan cannot change is taken from any plan: the compute outside the
experts and the fixed cost of each exchange. What it can change is relaxed:

- *Experts.* Roofline time grows with rows and with experts hit, and is convex in both once whole
  tiles and waves are left out; so the mean over ranks of it is at least its value at the mean load,
  and the slowest rank is at least as slow as that. Of an expert with c choices and at most r
  replicas, some rank serves at least ⌈c / r⌉.
- *Copies.* A token that chooses k experts reaches at least ⌈k / P⌉ ranks of P slots, all but one of
  them over a link.

How the parts of one rank add up to a step: a rank goes through its stages one after the other, so
the step takes at least the mean over ranks of the sum of its compute and setups. Where ranks wait
for each other at a barrier in every layer (the exchange of counts before a normal dispatch), the
step takes at least the sum over layers of what the slowest rank needs between two barriers: at
least the mean, and at least the least of the fixed parts with the hottest expert.

Copies go by several ways (`ways`): over all links of a rank, over its NIC, over its NVLink, over the
NICs of a domain's relays. Of the copies of each way, what is proved is how many a rank takes in on
average. None of these lemmas adds mean expert time to the floor of a link that ranks share: that is
no bound, since one rank's experts run while another's copies travel.

- *Chain.* Behind a barrier that all pass at b, rank r begins its experts no sooner than b, the
  setup and all copies into it have crossed its own port; it sends back what it received no sooner
  than its experts are done; and whoever waits for the last of that leaves the combine no sooner. So
  the next barrier, for which all wait, comes no sooner than b + setups + in_r + experts_r + out_r +
  the least of the fixed parts behind, for every r, and so for their mean. The copies of in_r and
  out_r are the same, and their mean over ranks is what `Homes` proves. A copy's latency counts
  where every rank takes in such a copy whatever the placement.
- *Passed on.* A relay's second leg begins no sooner than the first has come by its latency, and
  the way back ends no sooner than a latency after the first leg of it has: copies that relays pass
  on to r, or take from it, need the latency of a way between domains besides their own port.
- *Relays.* Say rank r in domain N, of k ranks, serves a token from source s elsewhere. Then r waits
  for all that s sends into N: it goes to one relay, which feeds r, or is r. The copies from all such
  s are D_r, shared by k NICs, so that one of these is busy for D_r / k of them, and r begins its
  experts no sooner. On the way back the relay for s begins to send when all that feed it, r among
  them, have begun; so that the last result for such s is under way for D_r / k copies after r's
  experts are done. This is a chain with in_r and out_r of D_r / k copies. Of a source that leaves u
  experts unchosen at most ⌊u / P⌋ ranks hear nothing, each of which misses at most as many copies
  as s has tokens, over k: this is taken off the mean. Whoever hears or not, *some* rank waits for
  the last copy over the fullest NIC, then serves something: in or out, and the least time of any
  rank's experts (the longer of in and out, not their sum).
- *A much wanted expert.* All this is true of the rank that holds expert e, too: in and out are then
  all copies of tokens that choose e, but those that may be at home near it wherever it stands, and
  its experts take no less than e alone.
- *Round trip.* Without a barrier, rank r leaves the combine when all of its tokens are back. Its
  copies leave through its own port, which takes out_r; the last of them then has its latency, the
  experts of whoever serves it, and the way back: setups + out_r + latencies + the least time of any
  rank's experts. Or: all results come in through its port, none before one copy went there and was
  served; the same with in_r. Per layer the mean rank needs the most of this and of its own experts
  with the setups. It holds where every rank's tokens need another rank, whatever the placement.
- *Two clocks.* Without a barrier, say the first rank enters a layer at m, the last at M, and tokens
  of every rank choose expert e. Its holder serves e no sooner than m + in_e + e's time (all copies
  for it cross its port), and M + e's time (it waits for the last rank's, or is the last). All ranks
  wait for it: that is the next m, but for setups and fixed parts. The next M comes no sooner than
  that and out_e, or, from M, the latency to a rank that stands as far off as any.

Valid for schedules whose tasks stand on one stream, refused for others. Proved copies are of all
steps together: a mean over steps of maxima is at least the maximum of their means.

One layer is relaxed in `relaxed`, and what lies between two barriers summed up in `segments`.

Axes: G rank, L MoE layer, D EP group, S step, I segment, W way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.certificates.relaxed import relaxed_layer
from moecast.placement.certificates.segments import Segment, mean_chain, segments_of
from moecast.placement.certificates.step_copies import proved_copies
from moecast.placement.certificates.ways import Ways
from moecast.sim.forward import ForwardPass
from moecast.sim.placed_model import PlacedModel
from moecast.sim.schedules import beside_in, schedule_tasks

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]

SAFETY = 1 - 1e-9  # sums of thousands of stages round


def certificate_s(
    problem: PlacementProblem,
    steps: Sequence[Step] | None = None,
    *,
    prove_nodes: int = 0,
    time_limit_s: float = np.inf,
    say: Callable[[str], None] | None = None,
) -> float:
    """Mean over steps (None: all planning steps) of a lower bound on each, in seconds.

    Parameters
    ----------
    prove_nodes
        Sets that set partitioning looks at for each layer's copies, over all steps together; 0:
        copies are bounded by counting choices alone.
    time_limit_s
        CPU seconds of it, over all layers.
    say
        Told how far that is, in words, layer by layer.
    """
    plan = problem.any_plan()
    if (beside := beside_in(plan, problem.workload.kernels)) is not None:
        rule = f"a certificate holds for tasks on one stream, not for {beside}: use sequential and all-gather"
        raise MoecastError(rule, field="schedule", value=plan.schedule)
    placed = PlacedModel.of(problem.cluster, problem.model, plan, phase=problem.workload.kernels, seed=problem.seed)
    ways = Ways.of(problem, placed)
    bounds, segments_S = [], []
    steps = problem.steps if steps is None else tuple(steps)
    for step in steps:
        forward = ForwardPass.of(placed, problem.trace, step)
        relaxed = [relaxed_layer(problem, placed, ways, step, layer) for layer in range(plan.layers)]
        tasks = schedule_tasks(forward)
        segments_S.append(segments_of(forward, tasks, relaxed, ways))
        bounds.append(max(sum(segment.seconds() for segment in segments) for segments in segments_S[-1]))
    least = float(np.mean(bounds))
    if prove_nodes and ways.counted:
        copies_DLW = proved_copies(
            problem, placed, ways, steps, most_nodes=prove_nodes, time_limit_s=time_limit_s, say=say
        )
        least = max(least, _pooled_bound(segments_S, copies_DLW / len(steps)))
    return SAFETY * least


def _pooled_bound(segments_SDI: Sequence[Sequence[Sequence[Segment]]], copies_DLW: Float) -> float:
    """The same for the mean of all steps, of which the copies are known together: of a rank and step.

    A mean of maxima is at least the maximum of means.
    """
    bounds = []
    for group, copies_LW in enumerate(copies_DLW):
        total = 0.0
        for parts in zip(*(segments_DI[group] for segments_DI in segments_SDI), strict=True):
            known = [float(np.mean([part.seconds() for part in parts]))]
            of_steps = zip(*(part.chains for part in parts), strict=True)
            known += [mean_chain(chains).seconds(copies_LW[parts[0].layer]) for chains in of_steps]
            # Trips of several layers in one segment: of each layer the better of its two bounds.
            if parts[0].trips:
                known.append(float(np.mean([part.rest_s for part in parts])) + sum(_of_layers(parts, copies_LW)))
            total += max(known)
        bounds.append(total)
    return max(bounds)


def _of_layers(parts: Sequence[Segment], copies_LW: Float) -> Iterator[float]:
    """Of each layer's trips in the same segment of all steps, the longest on average."""
    for trips in zip(*(part.trips for part in parts), strict=True):
        own_s = float(np.mean([trip.own_s for trip in trips]))
        if all(trip.chain.exchanges for trip in trips):
            own_s = max(own_s, mean_chain([trip.chain for trip in trips]).seconds(copies_LW[trips[0].layer]))
        yield own_s
