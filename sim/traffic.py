"""From the choices of a step's tokens to what each rank sends, receives and serves, in one compiled pass.

Axes: T token, L MoE layer, E expert, K choice, G rank, S source rank, D destination rank, N domain, P slot of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from moecast.sim.layout import Layout
from moecast.sim.plan import Plan
from moecast.sim.replicas import ReplicaTable

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float = npt.NDArray[np.float64]

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTraffic:
    """What one MoE layer of one step moves between ranks, and what each slot serves; counts of tokens.

    Parameters
    ----------
    tokens_G
        Tokens at home on each rank when the layer begins.
    choices_SD
        Choices by tokens at home on S served on D, own rank included.
    copies_SD
        Distinct (token, rank) pairs: tokens at home on S with at least one choice served on D.
    domain_copies_SN
        Distinct (token, domain) pairs.
    load_GP
        Choices that each slot serves.
    return_copies_SD, return_domain_copies_SN
        The same pairs on the way back, S being the rank that takes the results in. Equal to the two above except in
        mode ``stay``, where S is the token's next home and its old home counts among the D, since it sends the
        token's residual along.
    """

    tokens_G: Int
    choices_SD: Int
    copies_SD: Int
    domain_copies_SN: Int
    load_GP: Int
    return_copies_SD: Int
    return_domain_copies_SN: Int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTraffic:
    """The traffic of all MoE layers of a step; axes as in `LayerTraffic`, layers first.

    Parameters
    ----------
    home_LT
        In mode ``stay``: the rank where each token is at home before each layer and, in the last row, after the last
        one (L + 1 rows). None in the other modes, where tokens never leave home.
    same_rank_pairs, pairs
        Of the K x K pairs of a token's choices at consecutive layers: those served on one rank, and all.
    """

    tokens_LG: Int32
    choices_LSD: Int32
    copies_LSD: Int32
    domain_copies_LSN: Int32
    load_LGP: Int32
    return_copies_LSD: Int32
    return_domain_copies_LSN: Int32
    home_LT: Int32 | None
    same_rank_pairs: int
    pairs: int

    @property
    def layers(self) -> int:
        """L."""
        return len(self.tokens_LG)

    @property
    def n_tokens(self) -> int:
        """T."""
        return int(self.tokens_LG[0].sum()) if self.layers else 0

    def layer(self, index: int) -> LayerTraffic:
        """Give the traffic of one MoE layer."""
        return LayerTraffic(
            tokens_G=self.tokens_LG[index].astype(np.int64),
            choices_SD=self.choices_LSD[index].astype(np.int64),
            copies_SD=self.copies_LSD[index].astype(np.int64),
            domain_copies_SN=self.domain_copies_LSN[index].astype(np.int64),
            load_GP=self.load_LGP[index].astype(np.int64),
            return_copies_SD=self.return_copies_LSD[index].astype(np.int64),
            return_domain_copies_SN=self.return_domain_copies_LSN[index].astype(np.int64),
        )

    @property
    def rank_load_LG(self) -> Int:
        """Choices that each rank serves."""
        return np.asarray(self.load_LGP.sum(-1, dtype=np.int64))


def count_traffic(
    plan: Plan,
    layout: Layout,
    experts_TLK: npt.NDArray[np.uint16],
    token_T: Int,
    home_T: Int32,
    *,
    stay: bool = False,
    table: ReplicaTable | None = None,
) -> StepTraffic:
    """Count the traffic of one step.

    Parameters
    ----------
    experts_TLK
        The trace's choices; 65535 is no choice and is skipped.
    token_T
        Row of each of the step's tokens in the trace, in token order.
    home_T
        The rank that holds each token when the step begins.
    stay
        Tokens move on to the rank that serves their first choice (the first that is not empty) instead of returning
        home; a token without a choice stays where it is.
    table
        The plan's replica table, where the caller has it already.

    Raises
    ------
    ValueError
        Arrays that do not fit each other or the plan.
    """
    if len(token_T) != len(home_T):
        raise ValueError(f"token_T has {len(token_T)} tokens, home_T {len(home_T)}")
    if experts_TLK.shape[1:] != (plan.layers, plan.choices):
        raise ValueError(f"experts_TLK has [L, K] = {experts_TLK.shape[1:]}, the plan {(plan.layers, plan.choices)}")
    token_T = np.ascontiguousarray(token_T, np.int64)
    home_T = np.ascontiguousarray(home_T, np.int32)
    if not stay and (np.diff(home_T) < 0).any():  # counters of one source stay in cache; the order within it is kept
        order = np.argsort(home_T, kind="stable")
        token_T, home_T = token_T[order], home_T[order]
    if table is None:
        table = ReplicaTable.of(plan, layout.domain_G)
    counts = _new_counts(plan, layout, table, len(token_T) if stay else 0)
    same, pairs = _count(
        experts_TLK, token_T, home_T, layout.group_G, layout.domain_G, layout.n_domains,
        table.row_of_S, table.candidates_R, table.place_X, table.below_X, stay, counts,
    )  # fmt: skip
    tokens_SL, choices_SLD, copies_SLD, domains_SLN, load_DLP, back_SLD, back_domains_SLN, home_LT = counts[:8]
    copies_LSD, domains_LSN = copies_SLD.swapaxes(0, 1), domains_SLN.swapaxes(0, 1)
    shape_DLGP = (plan.groups, plan.layers, plan.ep, plan.max_slots)
    load_LDGP = load_DLP.reshape(shape_DLGP).swapaxes(0, 1)
    return StepTraffic(
        tokens_LG=tokens_SL.T,
        choices_LSD=choices_SLD.swapaxes(0, 1),
        copies_LSD=copies_LSD,
        domain_copies_LSN=domains_LSN,
        load_LGP=load_LDGP.reshape(plan.layers, layout.n_ranks, plan.max_slots),
        return_copies_LSD=back_SLD.swapaxes(0, 1) if stay else copies_LSD,
        return_domain_copies_LSN=back_domains_SLN.swapaxes(0, 1) if stay else domains_LSN,
        home_LT=home_LT if stay else None,
        same_rank_pairs=int(same),
        pairs=int(pairs),
    )


class _Counts(NamedTuple):
    """What a pass fills in; `next_SLE` is how far each (source, layer, expert) is in its candidates."""

    tokens_SL: Int32
    choices_SLD: Int32
    copies_SLD: Int32
    domains_SLN: Int32
    load_DLP: Int32
    back_SLD: Int32
    back_domains_SLN: Int32
    home_LT: Int32
    next_SLE: npt.NDArray[np.uint32]


def _new_counts(plan: Plan, layout: Layout, table: ReplicaTable, staying: int) -> _Counts:
    """Make zeros; the last arrays are empty unless `staying` tokens move on from layer to layer."""
    ranks, layers = layout.n_ranks, plan.layers
    movers = ranks if staying else 0
    source_S1 = np.arange(ranks)[:, None]
    if plan.replica_rule == "weights":  # counts of choices, which never start anew
        next_SLE = np.broadcast_to(source_S1, (ranks, layers * plan.experts))
    else:
        replicas_R = table.candidates_R & 65535
        next_SLE = source_S1 % replicas_R[table.row_of_S[:, None] + np.arange(layers * plan.experts)]
    return _Counts(
        tokens_SL=np.zeros((ranks, layers), np.int32),
        choices_SLD=np.zeros((ranks, layers, ranks), np.int32),
        copies_SLD=np.zeros((ranks, layers, ranks), np.int32),
        domains_SLN=np.zeros((ranks, layers, layout.n_domains), np.int32),
        load_DLP=np.zeros((plan.groups, layers, plan.ep * plan.max_slots), np.int32),
        back_SLD=np.zeros((movers, layers, ranks), np.int32),
        back_domains_SLN=np.zeros((movers, layers, layout.n_domains), np.int32),
        home_LT=np.empty((layers + 1 if staying else 0, staying), np.int32),
        next_SLE=next_SLE.astype(np.uint32).reshape(ranks, layers, plan.experts),
    )


_u = np.uint64  # numba checks signed indices for wrapping; unsigned ones are twice as fast here


@njit(cache=True, nogil=True)
def _count(  # type: ignore[no-untyped-def]
    experts_TLK, token_T, home_T, group_G, domain_G, n_domains, row_of_S, candidates_R, place_X, below_X, stay, counts
):
    layers, choices = experts_TLK.shape[1], experts_TLK.shape[2]
    ranks, experts, group_slots = len(group_G), counts.next_SLE.shape[2], counts.load_DLP.shape[2]
    weighted = len(below_X) > 0
    choices_X, copies_X, domains_X = counts.choices_SLD.ravel(), counts.copies_SLD.ravel(), counts.domains_SLN.ravel()
    load_X, next_X = counts.load_DLP.ravel(), counts.next_SLE.ravel()
    # mark + choices so far, per rank, for the current and the previous layer; a mark is one (token, layer), and rises.
    seen_G = np.zeros(2 * ranks, np.int64)
    seen_N = np.zeros(n_domains, np.int64)
    visited = np.empty(choices + 1, np.int64)
    same, pairs = np.int64(0), np.int64(0)
    for t in range(len(token_T)):
        token, home = _u(token_T[t]), np.int64(home_T[t])
        made_before = 0
        for layer in range(layers):
            mark = (t * (layers + 1) + layer + 1) << 16
            mark_before = mark - 65536 if layer > 0 else np.int64(1) << 62
            side = _u((layer & 1) * ranks)
            other = _u(ranks) - side
            at = home * layers + layer
            rows, nexts = _u(row_of_S[home] + layer * experts), _u(at * experts)
            to_ranks, to_domains = _u(at * ranks), _u(at * n_domains)
            to_slots = _u((group_G[home] * layers + layer) * group_slots)
            made, distinct, first_rank = 0, 0, home
            for k in range(choices):
                expert = experts_TLK[token, _u(layer), _u(k)]
                if expert == np.uint16(65535):
                    continue
                candidates = candidates_R[rows + _u(expert)]
                i = next_X[nexts + _u(expert)]
                x = _u(candidates >> 16)
                if weighted:
                    next_X[nexts + _u(expert)] = i + np.uint32(1)
                    x += _u(_by_weight(below_X, x, i))
                else:
                    x += _u(i)
                    i = np.uint32(i + np.uint32(1))
                    next_X[nexts + _u(expert)] = np.uint32(0) if i == (candidates & 65535) else i
                place = place_X[x]
                rank, domain = _u((place >> 16) & 65535), _u(place & 65535)
                load_X[to_slots + _u(place >> 32)] += 1
                choices_X[to_ranks + rank] += 1
                seen = seen_G[side + rank]
                new = seen < mark
                copies_X[to_ranks + rank] += new
                seen_G[side + rank] = (mark if new else seen) + 1
                domains_X[to_domains + domain] += seen_N[domain] < mark
                seen_N[domain] = mark
                before = seen_G[other + rank]
                same += before - mark_before if before >= mark_before else 0
                if stay:
                    first_rank = np.int64(rank) if made == 0 else first_rank
                    if new:
                        visited[distinct] = rank
                        distinct += 1
                made += 1
            pairs += made * made_before
            made_before = made
            counts.tokens_SL[home, layer] += 1
            if stay:
                counts.home_LT[layer, t] = home
                if seen_G[side + _u(home)] < mark:
                    visited[distinct] = home
                    distinct += 1
                home = first_rank
                _come_home(home, layer, visited[:distinct], domain_G, seen_N, mark + 1, counts)
        if stay:
            counts.home_LT[layers, t] = home
    return same, pairs


@njit(cache=True, nogil=True)
def _come_home(home, layer, visited, domain_G, seen_N, mark, counts):  # type: ignore[no-untyped-def]
    """Count a result from each rank and each domain to the token's next home."""
    for rank in visited:
        counts.back_SLD[home, layer, rank] += 1
        domain = domain_G[rank]
        counts.back_domains_SLN[home, layer, domain] += seen_N[domain] < mark
        seen_N[domain] = mark


@njit(cache=True)
def _by_weight(below_X, x, i):  # type: ignore[no-untyped-def]
    point = (i + 0.5) * _GOLDEN
    point -= np.floor(point)
    candidate = 0
    while point >= below_X[x + _u(candidate)]:
        candidate += 1
    return candidate
