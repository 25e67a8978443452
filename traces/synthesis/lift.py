"""Lifting: the donors' choices carried over to other numbers of layers, experts and choices.

Layers come from the source in bands (`source_layers`), each expert becomes several finer ones or
several become one, and a token makes more or fewer choices in proportion. docs/synthesis.md says
what that keeps and what it cannot know. Axes: T donor token, L MoE layer of the source, M MoE layer
made, E expert of the source, K choice of the source, J choice made, R neighbour, D dimension of the
sketch, X direction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moecast.traces.meta import NO_CHOICE, TraceMeta
from moecast.traces.statistics.affinity import affinity
from moecast.traces.statistics.tables import transition_LEE
from moecast.traces.synthesis.finer import choose, places_TK
from moecast.traces.synthesis.model import TraceModel
from moecast.traces.synthesis.shape import Shape
from moecast.traces.trace import RoutingTrace

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]
Rows = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]

# Copies of one source layer stand this far apart, so that layers in a row have different sources.
_BAND = 4
_DIRECTIONS = 4
_MOST_FOR_DIRECTIONS = 1024
_MOST_DIRECTION_BYTES = 64 << 20
_PAIRS = 4
# Donors on which the blur is fitted: so many that counting noise is a hundredth of what a choice
# tells.
_MOST_FOR_BLUR = 1 << 14
# Beyond this, tables of pairs of experts would be larger than what is worth knowing from them.
_MOST_FOR_TABLES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SourceLayers:
    """Which layer of the source each made one copies, and which copy of it that is: int64 [M] both."""

    layer_M: Ints
    copy_M: Ints


def source_layers(layers: int, made: int) -> SourceLayers:
    """Map layers by relative depth.

    Up to as many as the source has, each takes the one at its depth. More of them run through the
    source in bands of four layers, each as often as needed, so that layers that follow each other
    stand close in the source but differ.
    """
    if made <= layers:
        layer_M = ((np.arange(made) + 0.5) * layers / made).astype(np.int64)
        return SourceLayers(layer_M=layer_M, copy_M=np.zeros(made, np.int64))
    bands = np.array_split(np.arange(layers), -(-layers // _BAND))
    ends = np.round(np.cumsum([len(band) for band in bands]) * made / layers).astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    return SourceLayers(
        layer_M=np.concatenate([band[np.arange(n) % len(band)] for band, n in zip(bands, lengths, strict=True)]),
        copy_M=np.concatenate([np.arange(n) // len(band) for band, n in zip(bands, lengths, strict=True)]),
    )


def lifted_rows(
    model: TraceModel,
    shape: Shape,
    *,
    needed_MT: Mask | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Rows:
    """Carry the donors' choices over to a shape: uint16 [T, M, J].

    Their own where the shape is the source's.

    With more experts, how sharply a token's path decides among the finer ones is set so that a
    choice tells the same share of the next layer's choice as in the source.

    Parameters
    ----------
    needed_MT
        The only donors and layers that need be made; the others hold anything. What is made does
        not depend on it.
    progress
        Called with (layers made, layers).
    """
    rows_TLK = model.donors.trace.experts_TLK
    if (shape.layers, shape.experts, shape.choices) == model.meta.shape_LEK:
        return rows_TLK
    lift = _Lift(model, shape)
    tried: dict[int, _Layer] = {}
    blur = _fitting_blur(lift, tried) if shape.experts > model.meta.experts else 0.0
    made_TMJ = np.zeros((len(rows_TLK), shape.layers, shape.choices), np.uint16)
    every_T = np.ones(len(rows_TLK), bool)
    for made in range(shape.layers):
        layer = tried.pop(made, None) or lift.layer(made)
        layer.fill(blur, every_T if needed_MT is None else needed_MT[made], made_TMJ, made)
        if progress:
            progress(made + 1, shape.layers)
    return made_TMJ


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Layer:
    """What a layer is made from but for the blur; fields are those of `choose`."""

    parent_TK: Rows
    place_TK: Floats
    noise_TK: Floats
    first_E: Ints
    count_E: Ints
    label_M: Rows
    neighbours_TR: Indices
    chance_T2: Floats

    def fill(self, blur: float, needed_T: Mask, made_TMJ: Rows, at: int) -> None:
        """Write the needed tokens' choices; at `blur` 0 the path decides among finer experts, at 1 chance."""
        choose(
            self.parent_TK,
            self.place_TK,
            self.noise_TK,
            float(blur),
            self.first_E,
            self.count_E,
            self.label_M,
            self.neighbours_TR,
            self.chance_T2,
            needed_T,
            at,
            made_TMJ,
        )


class _Lift:
    """Makes layers of a shape from a model's donors."""

    def __init__(self, model: TraceModel, shape: Shape) -> None:
        self.model, self.shape = model, shape
        self.mapped = source_layers(model.meta.layers, shape.layers)
        self._directions: dict[int, Floats] = {}
        self._seed = int(model.content_hash[:16], 16)

    def layer(self, made: int) -> _Layer:
        """One of the layers to make."""
        meta, shape = self.model.meta, self.shape
        layer, copy = int(self.mapped.layer_M[made]), int(self.mapped.copy_M[made])
        neighbours_TR = self.model.neighbours_TR
        parent_TK = np.ascontiguousarray(self.model.donors.trace.experts_TLK[:, layer])
        if copy:  # a look-alike's choices, so that copies of a layer are not one layer
            other_T = neighbours_TR[:, (copy - 1) % neighbours_TR.shape[1]]
            parent_TK = parent_TK[np.where(other_T >= 0, other_T, np.arange(len(other_T)))]
        rng = np.random.default_rng([self._seed, *dataclasses.astuple(shape), made])
        load_E = np.bincount(parent_TK.ravel(), minlength=NO_CHOICE + 1)[: meta.experts]
        first_E, count_E = _finer(load_E, shape.experts)
        label_M = np.arange(shape.experts, dtype=np.uint16)
        if copy or shape.experts != meta.experts:
            label_M = rng.permutation(label_M)
        place_TK = noise_TK = np.zeros(parent_TK.shape, np.float32)
        if shape.experts > meta.experts:
            direction_ED = self._directions_XED(layer)[copy % _DIRECTIONS]
            place_TK = places_TK(parent_TK, self.model.sketch_TD, direction_ED)
            noise_TK = rng.random(place_TK.shape, dtype=np.float32) - np.float32(0.5)
        return _Layer(
            parent_TK=parent_TK,
            place_TK=place_TK,
            noise_TK=noise_TK,
            first_E=first_E,
            count_E=count_E,
            label_M=label_M,
            neighbours_TR=neighbours_TR,
            chance_T2=rng.random((len(parent_TK), 2), dtype=np.float32),
        )

    def _directions_XED(self, layer: int) -> Floats:
        """The directions along which the finer experts of a source layer lie, kept while they are few."""
        if layer not in self._directions:
            if sum(kept.nbytes for kept in self._directions.values()) > _MOST_DIRECTION_BYTES:
                self._directions.clear()
            rows_TK = self.model.donors.trace.experts_TLK[:, layer]
            self._directions[layer] = _directions_XED(rows_TK, self.model.sketch_TD, self.model.meta.experts)
        return self._directions[layer]


def told_share(meta: TraceMeta, rows_TLK: Rows) -> float:
    """Share of the next layer's choice that a choice tells: mutual information over entropy, mean of layers."""
    tokens = len(rows_TLK)
    trace = RoutingTrace(
        meta=meta,
        experts_TLK=rows_TLK,
        sequence_T=np.zeros(tokens, np.uint32),
        position_T=np.arange(tokens, dtype=np.uint32),
        phase_T=np.zeros(tokens, np.uint8),
        topic_T=np.full(tokens, -1, np.int16),
    )
    told = affinity(transition_LEE(trace), choices=meta.choices)
    bits = told.entropy_L[~np.isnan(told.entropy_L)]
    return told.information / float(bits.mean()) if bits.any() else 0.0


def _fitting_blur(lift: _Lift, tried: dict[int, _Layer]) -> float:
    """Find the blur at which a choice tells as much as it should, on pairs of layers of some donors: kept, `tried`."""
    model, shape = lift.model, lift.shape
    if min(model.meta.layers, shape.layers) < 2 or shape.experts > _MOST_FOR_TABLES:
        return 0.5
    starts = np.unique(np.linspace(0, shape.layers - 2, _PAIRS + 2)[1:-1].astype(int))
    rows_TLK = model.donors.trace.experts_TLK
    needed_T = np.arange(len(rows_TLK)) % -(-len(rows_TLK) // _MOST_FOR_BLUR) == 0
    source = dataclasses.replace(model.meta, layers=2, layer_ids=None)
    pairs = [rows_TLK[needed_T][:, lift.mapped.layer_M[m : m + 2]] for m in starts]
    wanted = np.mean([told_share(source, pair_TLK) for pair_TLK in pairs])
    tried |= {int(m): lift.layer(int(m)) for m in np.union1d(starts, starts + 1)}
    made = TraceMeta(model="pair", layers=2, experts=shape.experts, choices=shape.choices)
    pair_TMJ = np.zeros((len(rows_TLK), 2, shape.choices), np.uint16)

    def told(blur: float) -> float:
        shares = []
        for m in starts:
            for at in range(2):
                tried[int(m) + at].fill(blur, needed_T, pair_TMJ, at)
            shares.append(told_share(made, pair_TMJ[needed_T]))
        return float(np.mean(shares))

    told_at: dict[float, float] = {}
    blur = 0.0
    for trial in (0.0, 1.0, None, None):  # the later ones lie where a line through those around suggests
        at = blur if trial is None else trial
        told_at[at] = told(at)
        known = sorted(told_at)
        blur = float(np.interp(-wanted, -np.minimum.accumulate([told_at[at] for at in known]), known))
    return blur


def _finer(load_E: Ints, made: int) -> tuple[Ints, Ints]:
    """First number and number of the experts that each one becomes; some share one where fewer are made."""
    experts = len(load_E)
    busiest = np.argsort(-load_E, kind="stable")
    if made >= experts:
        count_E = np.full(experts, made // experts)
        count_E[busiest[: made % experts]] += 1
        return np.cumsum(count_E) - count_E, count_E
    first_E, load_M = np.empty(experts, np.int64), np.zeros(made)
    for expert in busiest:
        first_E[expert] = np.argmin(load_M)
        load_M[first_E[expert]] += load_E[expert] + 1e-9
    return first_E, np.ones(experts, np.int64)


def _directions_XED(rows_TK: Rows, sketch_TD: Floats, experts: int) -> Floats:
    """The main directions in which the tokens of each expert differ: float32 [4, E, D]."""
    direction_XED = np.zeros((_DIRECTIONS, experts, sketch_TD.shape[1]), np.float32)
    # tokens by expert, those of one in their order
    order_X = np.argsort(rows_TK, axis=None, kind="stable")
    bound_E1 = np.searchsorted(rows_TK.ravel()[order_X], np.arange(experts + 1))
    for expert in range(experts):
        members = order_X[bound_E1[expert] : bound_E1[expert + 1]] // rows_TK.shape[1]
        if len(members) > 1:
            chosen_TD = sketch_TD[members[:: -(-len(members) // _MOST_FOR_DIRECTIONS)]]
            chosen_TD -= chosen_TD.mean(axis=0)
            _, vector_DD = np.linalg.eigh(chosen_TD.T @ chosen_TD)
            direction_XED[:, expert] = vector_DD.T[::-1][:_DIRECTIONS]
    return direction_XED
