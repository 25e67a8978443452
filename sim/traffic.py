"""From the choices of a step's tokens to what each rank sends, receives and serves, in one compiled pass.

Axes: T token, L MoE layer, E expert, K choice, G rank, S source rank, M member of S's EP group, A
domain in which the group stands, P slot of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.sim.lplb import split_of_step
from moecast.sim.plan import Plan
from moecast.sim.replicas import ReplicaTable
from moecast.sim.simulated import check_simulated
from moecast.sim.sites import Sites
from moecast.sim.traffic_pass import Counts, Serving, count_tokens_of_sources
from moecast.threads import run_parts, thread_count
from moecast.traces import NO_CHOICE

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

_MIN_PART = 1 << 19  # choices that are worth a thread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTraffic:
    """What one MoE layer of one step moves between ranks, and what each slot serves.

    Counts of tokens.

    Parameters
    ----------
    tokens_G
        Tokens at home on each rank when the layer begins.
    choices_SM
        Choices by tokens at home on S served on member M of its EP group, own rank included.
    copies_SM
        Distinct (token, rank) pairs: tokens at home on S with at least one choice served on M.
    domain_copies_SA
        Distinct (token, domain) pairs.
    load_GP
        Choices that each slot serves.
    return_copies_SM, return_domain_copies_SA
        The same pairs on the way back, S being the rank that takes the results in. Equal to the two
        above except in mode ``stay``, where S is the token's next home and its old home counts
        among the M, since it sends the token's residual along.
    """

    tokens_G: Int
    choices_SM: Int
    copies_SM: Int
    domain_copies_SA: Int
    load_GP: Int
    return_copies_SM: Int
    return_domain_copies_SA: Int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTraffic:
    """The traffic of all MoE layers of a step; axes as in `LayerTraffic`, layers first.

    Parameters
    ----------
    home_LT
        In mode ``stay``: the rank where each token is at home before each layer and, in the last
        row, after the last one (L + 1 rows). None in the other modes, where tokens never leave
        home.
    same_rank_pairs, pairs
        Of the K x K pairs of a token's choices at consecutive layers: those served on one rank, and
        all.
    """

    tokens_LG: Int32
    choices_LSM: Int32
    copies_LSM: Int32
    domain_copies_LSA: Int32
    load_LGP: Int32
    return_copies_LSM: Int32
    return_domain_copies_LSA: Int32
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
            choices_SM=self.choices_LSM[index].astype(np.int64),
            copies_SM=self.copies_LSM[index].astype(np.int64),
            domain_copies_SA=self.domain_copies_LSA[index].astype(np.int64),
            load_GP=self.load_LGP[index].astype(np.int64),
            return_copies_SM=self.return_copies_LSM[index].astype(np.int64),
            return_domain_copies_SA=self.return_domain_copies_LSA[index].astype(np.int64),
        )

    @property
    def rank_load_LG(self) -> Int:
        """Choices that each rank serves."""
        return np.asarray(self.load_LGP.sum(-1, dtype=np.int64))


def count_traffic(
    plan: Plan,
    sites: Sites,
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
        Tokens move on to the rank that serves their first choice (the first that is not empty)
        instead of returning home; a token without a choice stays where it is.
    table
        The plan's replica table, where the caller has it already.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit each other, the plan or the layout, or ids that do not exist.
    MoecastError
        The plan says what is not simulated yet.
    """
    check_simulated(plan)
    experts_TLK = checked_choices(experts_TLK, plan)
    token_T = whole_numbers("token_T", token_T, most=len(experts_TLK) - 1)
    home_T = whole_numbers("home_T", home_T, most=plan.ranks - 1, shape=token_T.shape, dtype=np.int32)
    return count_checked_traffic(plan, sites, experts_TLK, token_T, home_T, stay=stay, table=table)


def count_checked_traffic(
    plan: Plan,
    sites: Sites,
    experts_TLK: npt.NDArray[np.uint16],
    token_T: Int,
    home_T: Int32,
    *,
    stay: bool,
    table: ReplicaTable | None,
) -> StepTraffic:
    """Count the traffic of one step whose ids are known to exist, as those of a trace and a Step are.

    Raises
    ------
    ValueError
        Ranks of the layout that are not the plan's, or the replica table of another plan.
    """
    if (sites.n_ranks, sites.n_members) != (plan.ranks, plan.ep):  # the pass indexes by both
        has = f"{sites.n_ranks} ranks in EP groups of {sites.n_members}"
        raise ValueError(f"layout: has {has}, the plan {plan.ranks} in groups of {plan.ep}")
    table = ReplicaTable.of(plan, sites.domain_G, node_G=sites.node_G) if table is None else table
    table.check_fits(plan, sites.cluster.n_domains)
    if not stay and (np.diff(home_T) < 0).any():  # counters of one source stay in cache; the order within it is kept
        order = np.argsort(home_T, kind="stable")
        token_T, home_T = token_T[order], home_T[order]
    if plan.replica_rule == "lplb" and len(table.place_X) > len(table.candidates_R):
        table, made_SLE = split_of_step(plan, table, experts_TLK, token_T, home_T)
        serving = Serving.of(plan, table)._replace(next_SLE=made_SLE)
    else:
        serving = Serving.of(plan, table)
    counts = Counts.zeros(plan, sites, len(token_T) if stay else None)
    if stay:
        counts.home_LT[0] = home_T
    parts = [slice(None)] if stay else _parts_by_source(home_T, plan.layers * plan.choices)
    met = run_parts(
        [
            partial(
                count_tokens_of_sources,
                experts_TLK,
                token_T[part],
                home_T[part],
                sites.place_SM,
                serving,
                counts,
                stay,
            )
            for part in parts
        ]
    )
    copies_LSM, domains_LSA = counts.copies_SLM.swapaxes(0, 1), counts.domains_SLA.swapaxes(0, 1)
    return StepTraffic(
        tokens_LG=_tokens_at_home(counts.home_LT[:-1] if stay else home_T[None], plan),
        choices_LSM=_by_member(counts.served_SLP, plan).swapaxes(0, 1),
        copies_LSM=copies_LSM,
        domain_copies_LSA=domains_LSA,
        load_LGP=_by_slot(counts.served_SLP, plan),
        return_copies_LSM=counts.back_SLM.swapaxes(0, 1) if stay else copies_LSM,
        return_domain_copies_LSA=counts.back_domains_SLA.swapaxes(0, 1) if stay else domains_LSA,
        home_LT=counts.home_LT if stay else None,
        same_rank_pairs=sum(same for same, _ in met),
        pairs=sum(pairs for _, pairs in met),
    )


def checked_choices(experts_TLK: npt.NDArray[np.uint16], plan: Plan) -> npt.NDArray[np.uint16]:
    """Give choices as the loops read them: L and K of the plan, its experts or `NO_CHOICE`.

    Raises
    ------
    ValueError, TypeError
        Names the first choice that is neither, or the sizes.
    """
    if not isinstance(experts_TLK, np.ndarray) or experts_TLK.dtype != np.uint16:
        found = getattr(experts_TLK, "dtype", type(experts_TLK).__name__)
        raise TypeError(f"experts_TLK: must be an array of uint16, not {found}")
    if experts_TLK.ndim != 3 or experts_TLK.shape[1:] != (plan.layers, plan.choices):
        raise ValueError(f"experts_TLK has [L, K] = {experts_TLK.shape[1:]}, the plan {(plan.layers, plan.choices)}")
    beyond_TLK = experts_TLK + np.uint16(1)  # no choice, 65535, becomes 0: one comparison is enough
    if int(beyond_TLK.max(initial=0)) > plan.experts:
        at = tuple(int(i) for i in np.argwhere(beyond_TLK > plan.experts)[0])
        rule = f"the plan has experts 0 to {plan.experts - 1}, and {NO_CHOICE} is no choice"
        raise ValueError(f"experts_TLK[{at[0]}][{at[1]}][{at[2]}] = {int(experts_TLK[at])}: {rule}")
    return np.ascontiguousarray(experts_TLK)


def _parts_by_source(home_T: Int32, row_choices: int) -> list[slice]:
    """Share sorted tokens out to threads; those of one source stay together, since they share its counters."""
    tokens = len(home_T)
    parts = max(1, min(thread_count(), tokens * row_choices // _MIN_PART))
    cuts = np.searchsorted(home_T, home_T[[tokens * part // parts for part in range(1, parts)]])
    return [slice(begin, end) for begin, end in zip([0, *cuts], [*cuts, tokens], strict=True)]


def _tokens_at_home(home_LT: Int32, plan: Plan) -> Int32:
    """[L, G]: tokens by rank; one row of homes stands for all layers."""
    tokens_LG = np.stack([np.bincount(home_T, minlength=plan.ranks) for home_T in home_LT]).astype(np.int32)
    return np.broadcast_to(tokens_LG, (plan.layers, plan.ranks))


def _by_member(served_SLP: Int32, plan: Plan) -> Int32:
    """[S, L, M]: choices by the member of the source's EP group that serves them."""
    shape = (plan.ranks, plan.layers, plan.ep, plan.max_slots)
    return np.asarray(served_SLP.reshape(shape).sum(axis=3, dtype=np.int32))


def _by_slot(served_SLP: Int32, plan: Plan) -> Int32:
    """[L, G, P]: choices that each slot serves, over all sources; ranks that share experts by width serve the same."""
    shape = (plan.groups, plan.layout.group_size, plan.layers, plan.ep, plan.max_slots)
    load_LDMP = served_SLP.reshape(shape).sum(axis=1, dtype=np.int32).swapaxes(0, 1)
    load_LGP = load_LDMP.reshape(plan.layers, plan.groups * plan.ep, plan.max_slots)
    return load_LGP if plan.etp == 1 else load_LGP[:, plan.layout.server_G]
