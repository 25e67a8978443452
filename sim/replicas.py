"""Which slot serves a choice when several slots hold its expert: the plan's replica rule.

Axes: D EP group, L MoE layer, G rank, P slot of a rank, E expert, S source rank, R (source class,
layer, expert) row, X (row, candidate slot) pair.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.arrays import numbers, whole_numbers
from moecast.compiled import entry
from moecast.sim.layout import MOST_RANKS
from moecast.sim.plan import Plan, ReplicaRule
from moecast.sim.replica_rule import list_nearest
from moecast.sim.slots import EMPTY

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float = npt.NDArray[np.float64]


class Candidates(NamedTuple):
    """Which of an expert's slots may serve a source's choices, in the order in which it takes them in turn.

    The choices of row r (an expert at a layer) by source s have entry ``i = row_of_S[s] + r``: its
    candidates are ``slot_X[first_R[i] : first_R[i] + count_R[i]]``.
    """

    row_of_S: Int
    first_R: Int32
    count_R: Int32
    slot_X: Int32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplicaTable:
    """The slots that may serve each expert, in the order in which a source takes them.

    The i-th choice of an expert by source rank s (i counts from 0 per source, layer and expert, in
    token order within the step) takes

    - ``round_robin``: candidate (i + s) mod r of all r slots that hold the expert, in slot order;
    - ``nearest``: the same over the candidates on its own rank; where there are none, those in its
      own domain; where there are none, all;
    - ``fixed``: always the same one: the first on its own rank; else, where only some candidates
      stand on its own host, the first of those; else one of all, dealt evenly over the sources that
      are left, in the order of ranks (SGLang's ``static`` dispatch, which shuffles who gets which;
      its node is a host, ``ep_size / nnodes`` ranks, also where an NVLink domain spans several:
      sgl-project/sglang, eplb/expert_location.py);
    - ``by_rank``: always the same one: of the r ranks that hold the expert, in order, the (member
      mod r)-th, `member` being the source's place in its EP group; its last slot there
      (vLLM-Ascend, which asks for no own replica first: vllm-project/vllm-ascend,
      eplb/core/eplb_utils.py, `generate_log2phy_map`);
    - ``lplb``: as ``weights``, with shares that are made anew for each step (`moecast.sim.lplb`); a
      table without them has all slots as candidates, for ``round_robin``;
    - ``weights``: the candidate in whose share of [0, 1) the point frac((i + s + ½) · φ) falls,
      shares laid end to end in slot order (φ: the golden ratio, so that any run of choices is
      spread close to the weights).

    Parameters
    ----------
    row_of_S
        First row of each source rank: the group's for ``round_robin`` and ``weights``, its own for
        the other rules. The choices of an expert by source s at a layer have row ``row_of_S[s] +
        layer · E + expert``.
    candidates_R
        Where the row's candidates begin in the arrays below (upper bits), and how many it has
        (lower 16 bits).
    place_X
        The candidate's slot in its EP group (member · P + slot), the member and its domain, 16 bits
        each from the top.
    below_X
        For ``weights``: the upper end of the candidate's share; empty otherwise.
    reach
        The highest slot, member and domain in `place_X`.

    Raises
    ------
    ValueError, TypeError
        Arrays in which a loop would read beyond the end.
    """

    row_of_S: npt.NDArray[np.int64]
    candidates_R: Int
    place_X: Int
    below_X: Float
    reach: tuple[int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        most = np.iinfo(np.int64).max
        candidates_R = whole_numbers("candidates_R", self.candidates_R, most=most)
        place_X = whole_numbers("place_X", self.place_X, most=(1 << 48) - 1)
        row_of_S = whole_numbers("row_of_S", self.row_of_S, most=max(0, len(candidates_R) - 1))
        begin_R, count_R = candidates_R >> 16, candidates_R & 65535
        if not count_R.all() or (begin_R + count_R).max(initial=0) > len(place_X):
            raise ValueError(f"candidates_R: every row needs candidates among the {len(place_X)} of place_X")
        below_X = numbers("below_X", self.below_X, shape=place_X.shape if len(self.below_X) else (0,))
        if len(below_X) and not (below_X[begin_R + count_R - 1] >= 1).all():
            raise ValueError("below_X: the last candidate of every row must reach 1")
        arrays = {"candidates_R": candidates_R, "place_X": place_X, "row_of_S": row_of_S, "below_X": below_X}
        for name, array in arrays.items():
            object.__setattr__(self, name, array)
        reach = tuple(int((place_X >> shift & 65535).max(initial=0)) for shift in (32, 16, 0))
        object.__setattr__(self, "reach", reach)

    def check_fits(self, plan: Plan, n_domains: int) -> None:
        """Fail where this is the table of another plan: where its rows, slots, ranks or domains are not there.

        Raises
        ------
        ValueError
            Names what is not there.
        """
        rows = plan.layers * plan.experts
        if len(self.row_of_S) != plan.ranks or int(self.row_of_S.max()) + rows != len(self.candidates_R):
            raise ValueError(
                f"table: has {len(self.row_of_S)} ranks and {len(self.candidates_R)} rows; the "
                f"plan has {plan.ranks} ranks, each with {rows} rows (layers x experts)"
            )
        for name, most, there in zip(
            ("slot", "member", "domain"), self.reach, (plan.ep * plan.max_slots, plan.ep, n_domains), strict=True
        ):
            if most >= there:
                raise ValueError(f"table: {name} {most}: there are {there}, numbered from 0")

    @classmethod
    def of(cls, plan: Plan, domain_G: Int32, *, node_G: Int32 | None = None) -> ReplicaTable:
        """Build the table of a plan whose ranks stand in the domains `domain_G`, on the hosts `node_G`.

        Without `node_G` every domain is a host, as those of a DGX are.

        Raises
        ------
        ValueError
            An EP group has no slot for some expert, or the rule is ``weights`` and the plan has
            none.
        """
        shape = (plan.ranks,)
        domain_G = whole_numbers("domain_G", domain_G, most=MOST_RANKS - 1, shape=shape, dtype=np.int32)
        most = np.iinfo(np.int32).max
        node_G = domain_G if node_G is None else whole_numbers("node_G", node_G, most=most, shape=shape, dtype=np.int32)
        first_R, count_R, slot_X = _slots_by_expert(plan.slots_DLGP, plan.experts)
        if not count_R.all():
            group, layer, expert = np.unravel_index(int(np.argmin(count_R)), (plan.groups, plan.layers, plan.experts))
            raise ValueError(f"layer {layer} of EP group {group} has no slot for expert {expert}")
        # ranks that share experts by width stand where the first of them does
        server_G = plan.layout.server_G
        _, holder_S = np.unique(server_G, return_index=True)
        group_S, rows = plan.layout.group_G[holder_S].astype(np.int64), plan.layers * plan.experts
        row_of_S, first_R, count_R, slot_X = _of_sources(
            Candidates(group_S * rows, first_R, count_R, slot_X),
            plan.replica_rule,
            group_S=group_S,
            place_G=(node_G if plan.replica_rule == "fixed" else domain_G)[holder_S],
            slots=plan.max_slots,
        )
        # each source has its own, or all of a group the same
        own_rows = len(first_R) > plan.groups * rows
        group_R = group_S.repeat(rows) if own_rows else np.arange(plan.groups).repeat(rows)
        group_X = group_R.repeat(count_R)
        member_X = slot_X.astype(np.int64) // plan.max_slots
        return cls(
            row_of_S=row_of_S[server_G],
            candidates_R=first_R.astype(np.int64) << 16 | count_R,
            place_X=slot_X.astype(np.int64) << 32 | member_X << 16 | domain_G[holder_S][group_X * plan.ep + member_X],
            below_X=_below(plan, first_R, count_R, slot_X) if plan.replica_rule == "weights" else np.empty(0),
        )


def _of_sources(of_group: Candidates, rule: ReplicaRule, *, group_S: Int, place_G: Int32, slots: int) -> Candidates:
    """Leave to each source the candidates that a rule leaves to it, of all those of its EP group, in slot order.

    `place_G`: what ``nearest`` and ``fixed`` take as near, domains or hosts. EP groups are equally
    large and stand one behind the other.
    """
    if rule not in ("nearest", "fixed", "by_rank") or (of_group.count_R <= 1).all():
        return of_group
    ep = int((group_S == 0).sum())
    rows = len(of_group.count_R) // (len(group_S) // ep)
    if rule == "by_rank":
        left = _by_rank(_last_of_each_rank(of_group, slots), group_S, ep, rows)
    else:
        rank_P = np.arange(ep * slots, dtype=np.int32) // slots
        left = _near(*of_group[1:], group_S, place_G, rank_P, rows, ep, rule == "fixed")
    return Candidates(np.arange(len(group_S)) * rows, *left)


def _last_of_each_rank(of_group: Candidates, slots: int) -> Candidates:
    """Leave one slot of an expert on each rank that holds it."""
    count_R, slot_X = of_group.count_R, of_group.slot_X
    row_X, rank_X = np.arange(len(count_R)).repeat(count_R), slot_X // slots
    # slots stand in order, row by row
    last_X = np.append((np.diff(row_X) != 0) | (np.diff(rank_X) != 0), True)
    count_R = np.bincount(row_X[last_X], minlength=len(count_R)).astype(np.int32)
    return Candidates(of_group.row_of_S, (np.cumsum(count_R) - count_R).astype(np.int32), count_R, slot_X[last_X])


def _by_rank(of_group: Candidates, group_S: Int, ep: int, rows: int) -> tuple[Int32, Int32, Int32]:
    """One candidate in each row of each source, which goes by its number in its EP group."""
    _, first_R, count_R, slot_X = of_group
    slot_SR = np.empty((len(group_S), rows), np.int32)
    for source, group in enumerate(group_S):
        own = slice(group * rows, (group + 1) * rows)
        slot_SR[source] = slot_X[first_R[own] + source % ep % count_R[own]]
    return np.arange(slot_SR.size, dtype=np.int32), np.ones(slot_SR.size, np.int32), slot_SR.ravel()


def _below(plan: Plan, first_R: Int32, count_R: Int32, slot_X: Int32) -> Float:
    weights = plan.replica_weights_DLGP
    assert weights is not None  # a plan of this rule has them
    weight_LP = weights.reshape(plan.groups * plan.layers, plan.ep * plan.max_slots).astype(np.float64)
    block_X = np.arange(len(first_R)).repeat(count_R) // plan.experts
    return laid_end_to_end(weight_LP[block_X, slot_X], first_R.astype(np.int64), count_R.astype(np.int64))


def laid_end_to_end(share_X: Float, first_R: Int, count_R: Int) -> Float:
    """Lay each row's shares end to end from 0 to 1 (the last one beyond it).

    Shares of 0 alone are an even split.

    Parameters
    ----------
    share_X
        How much each candidate takes, in any unit.
    first_R, count_R
        Where each row's candidates begin, and how many it has.
    """
    below_X: Float = _cumulative(share_X, first_R, count_R)
    return below_X


@entry
def _cumulative(share_X, first_R, count_R):  # type: ignore[no-untyped-def]
    below_X = np.empty(len(share_X))
    for row in range(len(first_R)):
        begin, end = first_R[row], first_R[row] + count_R[row]
        total = 0.0
        last = end - 1
        for x in range(begin, end):
            if share_X[x] > 0:
                total += share_X[x]
                last = x
        reached = 0.0
        for x in range(begin, end):
            reached += share_X[x] / total if total > 0 else 1 / (end - begin)
            # the last one takes what rounding leaves over
            below_X[x] = reached if x < last or total == 0 else 2.0
        below_X[end - 1] = 2.0
    return below_X


def _slots_by_expert(slots_DLGP: Int32, experts: int) -> tuple[Int32, Int32, Int32]:
    """List the slots that hold each (group, layer, expert), in slot order."""
    groups, layers, ranks, slots = slots_DLGP.shape
    held_BP = slots_DLGP.reshape(groups * layers, ranks * slots)
    block, slot = np.nonzero(held_BP != EMPTY)
    row = block * experts + held_BP[block, slot]
    count_R = np.bincount(row, minlength=groups * layers * experts)
    first_R = np.cumsum(count_R) - count_R
    order = np.argsort(row, kind="stable")
    return first_R.astype(np.int32), count_R.astype(np.int32), slot[order].astype(np.int32)


@entry
def _near(first_R, count_R, slot_X, group_S, place_G, rank_P, rows, ep, fixed):  # type: ignore[no-untyped-def]
    """Candidates of each source's rows by the rule ``nearest``, or the one by ``fixed``."""
    sources = len(group_S)
    first = np.empty(sources * rows, np.int32)
    count = np.empty(sources * rows, np.int32)
    # A group's sources see only its own slots, so this is room enough, and pages never written cost
    # nothing.
    out = np.empty(sources * len(slot_X), np.int32)
    dealt_R = np.zeros(len(first_R), np.int64)
    filled = 0
    for source in range(sources):
        leader = group_S[source] * ep
        place_M = place_G[leader : leader + ep]
        base, member = group_S[source] * rows, source - leader
        for row in range(rows):
            begin, end = first_R[base + row], first_R[base + row] + count_R[base + row]
            found = list_nearest(slot_X, begin, end, rank_P, place_M, member, place_M[member], out, filled)
            own = rank_P[slot_X[out[filled]]] == member
            if fixed and not own and found == end - begin:
                # Each expert begins at another of its slots: or the first ranks' choices would all
                # go to first slots.
                out[filled] = begin + (dealt_R[base + row] + row) % found
                dealt_R[base + row] += 1
            found = 1 if fixed else found
            for i in range(filled, filled + found):
                out[i] = slot_X[out[i]]
            first[source * rows + row], count[source * rows + row] = filled, found
            filled += found
    return first, count, out[:filled].copy()
