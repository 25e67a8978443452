"""Who is which rank: the degrees of parallelism, and every membership that follows from them.

Ranks are numbered as Megatron numbers them. Pipeline stages are blocks of ranks; in a stage the
tensor-parallel index runs fastest, then context, then data:

    rank = ((stage * dp + data) * cp + context) * tp + tensor

Experts cut the same block another way, EP group by EP group, in which the expert-tensor-parallel
index runs fastest:

    rank = ((stage * groups + group) * ep + member) * etp + expert_tensor

so tp x cp x dp = groups x ep x etp. The `groups` EP groups of a stage hold the same experts: they
are its expert data parallel ranks. No other file computes with these numbers.

Axes: G rank, D data-parallel rank, C share of the tokens (that of one of `cp` ranks, and those it
shares them with), V virtual pipeline stage, H hidden layer, X group of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.whole import short, whole, whole_list

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

MOST_RANKS = 2**16 - 1
"""The tables that loops read number ranks in 16 bits."""

DEGREES = ("tp", "cp", "pp", "etp", "ep", "groups", "virtual")
ATTENTION_AXES = ("pp", "dp", "cp", "tp")
EXPERT_AXES = ("pp", "groups", "ep", "etp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The degrees of a job, the GPU of each rank and the pipeline stage of each layer.

    Parameters
    ----------
    ep, groups
        Members of an EP group, and EP groups of a pipeline stage.
    etp
        Ranks that share each member's experts, a part of their width each.
    tp, cp
        Ranks that share attention's heads, and its sequences.
    pp, virtual
        Pipeline stages, and the chunks of layers that each holds (Megatron's virtual stages): pp x
        virtual in all.
    folded
        Two chunks come back the way they went (ZB-V, DualPipeV): the last stage holds the two in
        the middle. Else chunk after chunk starts again at the first stage.
    dp
        Data-parallel ranks; 0: what the others leave of the ranks.
    gpu_of_rank
        The GPU of each rank; None: 0, 1, 2 ….
    stage_of_layer
        The virtual stage of each hidden layer, in order; None: as many to each, the first ones one
        more.

    Raises
    ------
    ValueError
        Names the degree, its value and what does not divide.
    """

    ep: int
    groups: int = 1
    etp: int = 1
    tp: int = 1
    cp: int = 1
    pp: int = 1
    virtual: int = 1
    folded: bool = False
    dp: int = 0
    gpu_of_rank: tuple[int, ...] | None = None
    stage_of_layer: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check ranges, products and lists, and fill in what follows."""
        for name in DEGREES:
            object.__setattr__(self, name, whole(name, getattr(self, name), most=MOST_RANKS))
        whole("dp", self.dp, least=0, most=MOST_RANKS)
        if self.ranks > MOST_RANKS:
            raise ValueError(f"ranks = {self.ranks}: at most {MOST_RANKS}")
        if self.folded and self.virtual != 2:
            raise ValueError(f"virtual = {self.virtual}: a pipeline that folds back has 2 chunks a stage")
        self._fill_dp()
        gpus = tuple(range(self.ranks)) if self.gpu_of_rank is None else whole_list("gpu_of_rank", self.gpu_of_rank)
        if len(gpus) != self.ranks:
            raise ValueError(f"gpu_of_rank = {len(gpus)} entries: the layout has {self.ranks} ranks")
        object.__setattr__(self, "gpu_of_rank", gpus)
        if self.stage_of_layer is not None:
            object.__setattr__(self, "stage_of_layer", self._checked_stages(self.stage_of_layer))

    def _fill_dp(self) -> None:
        model_ranks = self.tp * self.cp * self.pp
        if self.ranks % model_ranks:
            name = "tp" if self.tp > 1 else "cp" if self.cp > 1 else "pp"
            raise ValueError(f"{name} = {getattr(self, name)}: does not divide the plan's {self.ranks} ranks")
        if self.dp == 0:
            object.__setattr__(self, "dp", self.ranks // model_ranks)
        if self.dp * model_ranks != self.ranks:
            raise ValueError(f"dp = {self.dp}: tp x cp x pp x dp is {model_ranks * self.dp}, the ranks {self.ranks}")

    def _checked_stages(self, values: Any) -> tuple[int, ...]:
        stages = whole_list("stage_of_layer", values)
        missing = sorted(set(range(self.stages)) - set(stages))
        if list(stages) != sorted(stages) or stages[-1] >= self.stages or missing:
            rule = f"for each hidden layer a stage of 0 to {self.stages - 1}, in order, none without a layer"
            raise ValueError(f"stage_of_layer = {short(stages)}: {rule}")
        return stages

    @classmethod
    def of_ranks(cls, ranks: int, *, ep: int | None = None, **degrees: Any) -> Layout:
        """Lay out so many ranks; `ep` None: one EP group in each pipeline stage.

        Raises
        ------
        ValueError
            A degree that does not divide what the others leave, and of what.
        """
        pp, etp = whole("pp", degrees.get("pp", 1)), whole("etp", degrees.get("etp", 1))
        in_stage = divided("pp", pp, ranks, f"the {ranks} ranks")
        in_experts = divided("etp", etp, in_stage, f"the {in_stage} ranks of a pipeline stage")
        members = in_experts if ep is None else whole("ep", ep)
        what = f"the cluster's {ranks} GPUs into EP groups" if in_experts == ranks else f"{in_experts} ranks"
        return cls(ep=members, groups=divided("ep", members, in_experts, what), **degrees)

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.groups * self.ep * self.etp * self.pp

    @property
    def ranks_of_stage(self) -> int:
        """Ranks of each pipeline stage."""
        return self.groups * self.ep * self.etp

    @property
    def stages(self) -> int:
        """V: virtual pipeline stages, through which a token goes in order."""
        return self.pp * self.virtual

    @property
    def stage_G(self) -> Int32:
        """Pipeline stage of each rank."""
        return self._index_G(ATTENTION_AXES, "pp")

    @property
    def dp_G(self) -> Int32:
        """Data-parallel rank of each rank: whose tokens it holds, in its pipeline stage."""
        return self._index_G(ATTENTION_AXES, "dp")

    @property
    def cp_G(self) -> Int32:
        """Place of each rank among those that share its sequences."""
        return self._index_G(ATTENTION_AXES, "cp")

    @property
    def tp_G(self) -> Int32:
        """Place of each rank among those that share its heads."""
        return self._index_G(ATTENTION_AXES, "tp")

    @property
    def member_G(self) -> Int32:
        """Place of each rank in its EP group; ranks that share experts by width have the same."""
        return self._index_G(EXPERT_AXES, "ep")

    @property
    def etp_G(self) -> Int32:
        """Place of each rank among those that share its experts' width."""
        return self._index_G(EXPERT_AXES, "etp")

    @property
    def group_G(self) -> Int32:
        """EP group of each rank, counted through all pipeline stages."""
        groups = self.pp * self.groups
        return np.arange(groups, dtype=np.int32).repeat(self.ep * self.etp)

    @property
    def group_in_stage_G(self) -> Int32:
        """EP group of each rank, counted in its pipeline stage: ranks with the same experts differ in it."""
        return self._index_G(EXPERT_AXES, "groups")

    def _index_G(self, axes: tuple[str, ...], axis: str) -> Int32:
        sizes = [getattr(self, name) for name in axes]
        shape = [1] * len(axes)
        shape[axes.index(axis)] = -1
        index = np.arange(getattr(self, axis), dtype=np.int32).reshape(shape)
        return np.ascontiguousarray(np.broadcast_to(index, sizes).ravel())

    def peers(self, axis: str) -> Int32:
        """Ranks that differ in one index only, in its order: [X, size of the axis].

        `axis` is tp, cp, dp or pp of attention's cut, or ep, etp or groups (expert data parallel)
        of the experts'.
        """
        axes = EXPERT_AXES if axis in EXPERT_AXES and axis != "pp" else ATTENTION_AXES
        sizes = [getattr(self, name) for name in axes]
        rank = np.arange(self.ranks, dtype=np.int32).reshape(sizes)
        return np.ascontiguousarray(np.moveaxis(rank, axes.index(axis), -1).reshape(-1, getattr(self, axis)))

    def peers_of_ranks(self, axis: str) -> Int32:
        """The same for each rank: [G, size of the axis], itself included."""
        peers_XR = self.peers(axis)
        peers_GR = np.empty((self.ranks, peers_XR.shape[1]), np.int32)
        peers_GR[peers_XR] = peers_XR[:, None, :]
        return peers_GR

    @property
    def server_G(self) -> Int32:
        """Which member serves on each rank, counted through all EP groups: `member_G` + ep x `group_G`."""
        return self.group_G * np.int32(self.ep) + self.member_G

    @property
    def group_size(self) -> int:
        """Ranks of an EP group."""
        return self.ep * self.etp

    @property
    def groups_stand_alone(self) -> bool:
        """Whether nothing but experts ties ranks together: no ranks that share tokens are of two EP groups."""
        return self.stages == 1 and self.cp == 1 and self.group_size % self.tp == 0

    def ranks_of_group(self, group: int) -> Int32:
        """Ranks of one EP group, member by member."""
        size = self.ep * self.etp
        return np.arange(group * size, (group + 1) * size, dtype=np.int32)

    def holders_D(self) -> Int32:
        """The first rank of each data-parallel rank, in the first pipeline stage."""
        return np.arange(self.dp, dtype=np.int32) * (self.tp * self.cp)

    def homes_T(self, source_T: Int32, place_T: Int32 | None = None) -> Int32:
        """The rank that dispatches each token, by its data-parallel rank: those that share tokens take equal runs.

        `place_T`: which of the ranks that share its sequence has it (0 to cp - 1); None: they take
        equal runs, too.
        """
        if self.tp * self.cp == 1:
            return source_T
        parts = self.tp * self.cp if place_T is None else self.tp
        owner_T = np.asarray(source_T, np.int64) if place_T is None else np.int64(self.cp) * source_T + place_T
        tokens_O = np.bincount(owner_T, minlength=self.ranks_of_stage // parts)
        nth_T = np.empty(len(source_T), np.int64)
        nth_T[np.argsort(owner_T, kind="stable")] = np.arange(len(source_T))
        nth_T -= (np.cumsum(tokens_O) - tokens_O)[owner_T]
        return np.asarray(owner_T * parts + nth_T * parts // tokens_O[owner_T], np.int32)

    def dealt(self, ids_T: npt.NDArray[Any]) -> Int32:
        """A rank for each number, round robin: where sequences without a recorded home are taken to stand."""
        return (ids_T % self.ranks).astype(np.int32)

    @property
    def share_G(self) -> Int32:
        """Which tokens each rank attends for: `cp_G` + cp x `dp_G`. Ranks of tensor parallelism have the same."""
        return self.dp_G * np.int32(self.cp) + self.cp_G

    @property
    def first_DN(self) -> Int32:
        """The first rank of each share of the tokens: by data-parallel rank and place among its `cp` ranks."""
        return (np.arange(self.shares, dtype=np.int32) * self.tp).reshape(self.dp, self.cp)

    @property
    def shares(self) -> int:
        """C: how many parts of the tokens there are, dp x cp."""
        return self.dp * self.cp

    def by_share(self, values_C: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[G] of [C]: what each share of the tokens has, at each of its ranks."""
        return np.asarray(values_C)[self.share_G]

    def sum_by_share(self, values_G: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[C] of [G]: sums over the ranks of each share of the tokens; of one pipeline stage."""
        return np.asarray(values_G).reshape(self.shares, -1).sum(axis=1)

    def of_all_shares(self, values_C: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[C] of [C]: sums over all shares of a data-parallel rank, at each of them."""
        summed_D = np.asarray(values_C).reshape(self.dp, self.cp).sum(axis=1)
        return np.repeat(summed_D, self.cp)

    def sum_by_group(self, values_D: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sums of [D] over the data-parallel ranks whose first rank stands in each EP group of a stage."""
        summed = np.zeros(self.groups, np.asarray(values_D).dtype)
        np.add.at(summed, self.group_G[self.holders_D()], values_D)
        return summed

    def stage_of_layers(self, n_layers: int) -> Int32:
        """[H]: the virtual stage of each of a model's hidden layers.

        Raises
        ------
        ValueError
            The layout lists another number of layers, or there are more stages than layers.
        """
        if self.stage_of_layer is not None:
            if len(self.stage_of_layer) != n_layers:
                raise ValueError(f"stage_of_layer = {len(self.stage_of_layer)} layers: the model has {n_layers}")
            return np.array(self.stage_of_layer, np.int32)
        if self.stages > n_layers:
            raise ValueError(f"pp = {self.pp}: {self.stages} stages, the model has {n_layers} layers")
        counts_V = [len(part) for part in np.array_split(np.arange(n_layers), self.stages)]
        return np.arange(self.stages, dtype=np.int32).repeat(counts_V)

    def layers_of_stage(self, stage: int, n_layers: int) -> tuple[int, ...]:
        """Hidden layers of one virtual stage, as `stage_of_layers` deals them."""
        return tuple(np.flatnonzero(self.stage_of_layers(n_layers) == stage).tolist())

    @property
    def home_V(self) -> Int32:
        """The pipeline stage that holds each virtual stage."""
        there = np.arange(self.pp, dtype=np.int32)
        return np.concatenate([there, there[::-1]]) if self.folded else np.tile(there, self.virtual)

    def ranks_of_virtual_stage(self, stage: int) -> Int32:
        """Ranks that hold a virtual stage, in order: rank i of `of_stage`'s layout is the i-th of these."""
        first = int(self.home_V[stage]) * self.ranks_of_stage
        return np.arange(first, first + self.ranks_of_stage, dtype=np.int32)

    def of_stage(self, stage: int) -> Layout:
        """Give the layout of one virtual stage alone, its ranks counted from 0."""
        ranks = self.ranks_of_virtual_stage(whole("stage", stage, least=0, most=self.stages - 1))
        gpus = self.gpu_of_rank or ()
        return Layout(
            ep=self.ep,
            groups=self.groups,
            etp=self.etp,
            tp=self.tp,
            cp=self.cp,
            dp=self.dp,
            gpu_of_rank=tuple(gpus[rank] for rank in ranks),
        )


def divided(name: str, degree: int, whole_: int, what: str) -> int:
    """Divide ranks by a degree.

    Raises
    ------
    ValueError
        It does not divide `what`.
    """
    if degree < 1 or whole_ % degree:
        raise ValueError(f"{name} = {degree}: does not divide {what}")
    return whole_ // degree
