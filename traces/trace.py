"""A routing trace in memory: which experts each token chose at each MoE layer, and what is known of each token.

Axes: T token, L MoE layer, E expert, K choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.traces.hashing import ContentHasher
from moecast.traces.meta import NO_CHOICE, PHASES, TraceMeta

# Column of RoutingTrace -> element type; those that may be None stand in the second table.
_REQUIRED = {
    "experts_TLK": np.uint16,
    "sequence_T": np.uint32,
    "position_T": np.uint32,
    "phase_T": np.uint8,
    "topic_T": np.int16,
}
_OPTIONAL = {
    "step_T": np.uint32,
    "source_rank_T": np.uint16,
    "token_id_T": np.int32,
    "weights_TLK": np.float16,
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoutingTrace:
    """The choices of T tokens in the order the run saw them.

    Arrays are read-only and share memory where they can.

    Parameters
    ----------
    meta
        Sizes and provenance.
    experts_TLK
        uint16; `NO_CHOICE` where a token makes no choice. An expert appears at most once per token
        and layer.
    sequence_T, position_T
        uint32; the request, unique in the trace, and the place in it.
    phase_T
        uint8, an index into `PHASES`.
    topics, topic_T
        Names of the topics; int16 index into them, -1 where not known.
    step_T, source_rank_T, token_id_T
        The forward pass, the rank that held the token and its vocabulary id; None where not
        recorded.
    weights_TLK
        float16 gate weights, or None.

    Raises
    ------
    ValueError
        Arrays that do not fit each other or the sizes in `meta`, or ids out of range.
    TypeError
        An array of another element type.
    """

    meta: TraceMeta
    experts_TLK: npt.NDArray[np.uint16]
    sequence_T: npt.NDArray[np.uint32]
    position_T: npt.NDArray[np.uint32]
    phase_T: npt.NDArray[np.uint8]
    topics: tuple[str, ...] = ()
    topic_T: npt.NDArray[np.int16]
    step_T: npt.NDArray[np.uint32] | None = None
    source_rank_T: npt.NDArray[np.uint16] | None = None
    token_id_T: npt.NDArray[np.int32] | None = None
    weights_TLK: npt.NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        tokens = len(self.experts_TLK)
        for name, dtype in (_REQUIRED | _OPTIONAL).items():
            array = getattr(self, name)
            if array is None and name in _OPTIONAL:
                continue
            shape = (tokens, self.meta.layers, self.meta.choices) if name.endswith("_TLK") else (tokens,)
            object.__setattr__(self, name, _frozen(name, array, dtype, shape))
        _check_below("phase_T", self.phase_T, len(PHASES))
        if tokens and not -1 <= int(self.topic_T.min()) <= int(self.topic_T.max()) < len(self.topics):
            raise ValueError(f"topic_T: an index outside the {len(self.topics)} topics")
        if len(set(self.topics)) != len(self.topics):
            raise ValueError("topics: a name appears twice")
        outside = self.experts_TLK >= self.meta.experts
        if np.any(self.experts_TLK[outside] != NO_CHOICE):
            raise ValueError(
                f"experts_TLK: an id outside 0…{self.meta.experts - 1} that is not {NO_CHOICE} (no choice)"
            )

    @classmethod
    def empty(cls, meta: TraceMeta) -> RoutingTrace:
        """Trace without tokens."""
        return cls(
            meta=meta,
            experts_TLK=np.empty((0, meta.layers, meta.choices), np.uint16),
            sequence_T=np.empty(0, np.uint32),
            position_T=np.empty(0, np.uint32),
            phase_T=np.empty(0, np.uint8),
            topic_T=np.empty(0, np.int16),
        )

    def check_shape(self, meta: TraceMeta) -> None:
        """Fail where this is no batch of a trace of `meta`: what counts batch after batch has tables of its sizes.

        Raises
        ------
        ValueError
            L, E or K differ.
        """
        if self.meta.shape_LEK != meta.shape_LEK:
            raise ValueError(f"L, E, K = {self.meta.shape_LEK}, expected {meta.shape_LEK}")

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.experts_TLK)

    def select(self, index: slice | npt.ArrayLike) -> RoutingTrace:
        """Pick the tokens at `index` (positions, a boolean mask, or a slice, which copies nothing), in that order."""
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.size == 0:
                index = index.astype(np.intp)
        chosen: dict[str, Any] = {name: array[index] for name, array in self.columns().items()}
        return dataclasses.replace(self, **chosen)

    def split(self, fraction: float) -> tuple[RoutingTrace, RoutingTrace]:
        """Part for planning and part for measuring.

        Within each (phase, topic), the first floor(n · fraction) tokens go to the first part, the
        rest to the second; both keep the trace's order.

        Raises
        ------
        ValueError
            `fraction` is not between 0 and 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction = {fraction!r}: must be between 0 and 1")
        # 0.29 of 100 is 29, which it is not in binary
        exact = Fraction(float(fraction)).limit_denominator(10**6)
        planning_T = np.zeros(self.n_tokens, bool)
        group_T = self.phase_T.astype(np.int64) * (len(self.topics) + 1) + self.topic_T + 1
        for group in np.unique(group_T):
            members = np.flatnonzero(group_T == group)
            planning_T[members[: int(len(members) * exact)]] = True
        return self.select(planning_T), self.select(~planning_T)

    def content_hash(self) -> str:
        """Sha-256 (hex) of L, E, K and the columns but `weights_TLK`.

        The same for every shard layout, compression and order of topic names.
        """
        hasher = ContentHasher(self.meta)
        hasher.add(self.columns(), self.topics)
        return hasher.hexdigest()

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that are not None, by name."""
        return {name: array for name in (*_REQUIRED, *_OPTIONAL) if (array := getattr(self, name)) is not None}


def concatenate(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """One trace of all tokens in order.

    Topics are joined by name and the first trace's `meta` is kept.

    Raises
    ------
    ValueError
        No trace, different L, E or K, or a column that only some of them have.
    """
    if not traces:
        raise ValueError("nothing to concatenate")
    first = traces[0]
    names = set(first.columns())
    for trace in traces[1:]:
        if trace.meta.shape_LEK != first.meta.shape_LEK:
            raise ValueError(f"L, E, K differ: {first.meta.shape_LEK} and {trace.meta.shape_LEK}")
        if set(trace.columns()) != names:
            raise ValueError(f"only some traces have {sorted(names ^ set(trace.columns()))}")
    topics = tuple(dict.fromkeys(name for trace in traces for name in trace.topics))
    joined: dict[str, Any] = {name: np.concatenate([getattr(trace, name) for trace in traces]) for name in names}
    joined["topic_T"] = np.concatenate([_renumbered(trace, topics) for trace in traces])
    return dataclasses.replace(first, topics=topics, **joined)


def _renumbered(trace: RoutingTrace, topics: tuple[str, ...]) -> npt.NDArray[np.int16]:
    new_of_old = np.array([*(topics.index(name) for name in trace.topics), -1], np.int16)
    return new_of_old[trace.topic_T]


def _frozen(name: str, array: Any, dtype: type, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{name}: must be an array of {np.dtype(dtype)}, not {found}")
    if array.shape != shape:
        raise ValueError(f"{name}: shape {array.shape}, expected {shape}")
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _check_below(name: str, array_T: npt.NDArray[np.uint8], limit: int) -> None:
    if len(array_T) and int(array_T.max()) >= limit:
        raise ValueError(f"{name}: {int(array_T.max())} is not below {limit}")
