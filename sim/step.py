"""The Step: the tokens of one forward pass, and what each rank holds of them.

Axes: T token, G DP rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moecast.arrays import index, whole_numbers
from moecast.sim.layout import MOST_RANKS
from moecast.sim.parts import PARTS_OF, PHASES, Part, phase_of

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

MOST_CONTEXT = 1 << 32
"""Traces number positions in 32 bits."""

_MARKS = ("last_T", "decode_T", "end_T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """The tokens of one forward pass: a prefill part and a decode part, either of which may be empty.

    The parts attend apart and share all the rest: projections, dispatch, experts.

    Parameters
    ----------
    token_T
        int64; each token's row in the trace. Sorted by rank; within a rank a sequence's tokens
        stand in order.
    source_T
        int32; the DP rank that holds it.
    context_T
        int64; how many keys it attends to, itself included.
    phase
        `prefill` or `decode` where all tokens are of that part, else `mixed`.
    topic
        The topic of all its tokens, where the step was drawn from one.
    last_T
        Whether the token's logits are wanted: the last of a prompt in prefill, every token in
        decode. None: all.
    decode_T
        Whether the token is of the decode part; a mixed step says it.
    end_T
        Whether it is its sequence's last in this step, where a sequence has several tokens in the
        decode part (drafts that are verified) or the step is mixed. None: every token of decode,
        and of prefill where contexts cease to rise.

    Raises
    ------
    ValueError, TypeError
        Arrays of different lengths, of other types, or with numbers that no trace and no plan has.
    """

    token_T: Int
    source_T: Int32
    context_T: Int
    phase: str
    topic: str | None = None
    last_T: Bool | None = None
    decode_T: Bool | None = None
    end_T: Bool | None = None

    def __post_init__(self) -> None:
        """Check what loops rely on, and take the arrays in the types that they read."""
        if self.phase not in PHASES:
            raise ValueError(f"phase = {self.phase!r}: one of {', '.join(PHASES)}")
        token_T = whole_numbers("token_T", self.token_T, most=np.iinfo(np.int64).max)
        shape = token_T.shape
        source_T = whole_numbers("source_T", self.source_T, most=MOST_RANKS - 1, shape=shape, dtype=np.int32)
        context_T = whole_numbers("context_T", self.context_T, most=MOST_CONTEXT, shape=shape)
        for name, array in (("token_T", token_T), ("source_T", source_T), ("context_T", context_T)):
            object.__setattr__(self, name, array)
        for name in _MARKS:
            if getattr(self, name) is not None:
                marks_T = np.asarray(getattr(self, name))
                if marks_T.dtype != np.bool_:
                    raise TypeError(f"{name}: must be truth values, not {marks_T.dtype}")
                if marks_T.shape != shape:
                    raise ValueError(f"{name}: shape {list(marks_T.shape)}, must be [{shape[0]}]")
                object.__setattr__(self, name, marks_T)
        if (len(PARTS_OF[self.phase]) > 1) != (self.decode_T is not None):
            raise ValueError("decode_T: a mixed step says which tokens decode, no other does")

    def check_within(self, *, tokens: int, ranks: int) -> None:
        """Fail where the step names a token or a DP rank that does not exist.

        Raises
        ------
        ValueError
            Names the first field that does.
        """
        for name, most in (("token_T", tokens), ("source_T", ranks)):
            highest = int(getattr(self, name).max(initial=-1))
            if highest >= most:
                raise ValueError(f"{name} = {highest}: there are {most}, numbered from 0")

    def split(self, parts: int) -> list[Step]:
        """Cut the tokens of each rank into runs of equal length (the first ones a token longer): half batches, chunks.

        Raises
        ------
        ValueError
            `parts` is not a whole number of at least 1.
        """
        parts = index("parts", parts, least=1, most=MOST_RANKS)
        tokens_G = np.bincount(self.source_T)
        order_T = np.argsort(self.source_T, kind="stable")
        place_T = np.empty(self.n_tokens, np.int64)
        place_T[order_T] = np.arange(self.n_tokens) - (np.cumsum(tokens_G) - tokens_G)[self.source_T[order_T]]
        # Run i ends at ceil(n (i + 1) / parts), so token t is of run floor(t parts / n).
        part_T = place_T * parts // np.maximum(tokens_G, 1)[self.source_T]
        return [self._only(part_T == part) for part in range(parts)]

    def _only(self, chosen_T: Bool) -> Step:
        return replace(
            self,
            token_T=self.token_T[chosen_T],
            source_T=self.source_T[chosen_T],
            context_T=self.context_T[chosen_T],
            **{name: marks_T[chosen_T] for name in _MARKS if (marks_T := getattr(self, name)) is not None},
        )

    @classmethod
    def of_tokens(
        cls, *, token_T: Int, source_T: Int32, context_T: Int, decode_T: Bool, wanted_T: Bool, end_T: Bool
    ) -> Step:
        """Make a step of tokens that each say of which part they are, whether a sequence ends there, and is asked."""
        found = {Part.DECODE if decodes else Part.PREFILL for decodes in np.unique(decode_T).tolist()}
        phase = phase_of(found)
        alone = found == {Part.DECODE}
        return cls(
            token_T=token_T,
            source_T=source_T,
            context_T=context_T,
            phase=phase,
            last_T=None if alone else wanted_T,
            decode_T=decode_T if len(found) > 1 else None,
            end_T=None if alone else end_T,
        )

    @property
    def kernels(self) -> Part:
        """Whose kernels run, dispatch and experts: decode's low-latency ones only where there is no prefill part."""
        return PARTS_OF[self.phase][0]

    @property
    def decodes_only(self) -> bool:
        """Whether there is no prefill part."""
        return self.kernels is Part.DECODE

    @property
    def parts(self) -> tuple[tuple[Part, Bool | None], ...]:
        """The parts that have tokens, and which tokens are of each, None for all of the step."""
        if self.decode_T is None:
            return ((self.kernels, None),)
        return ((Part.PREFILL, ~self.decode_T), (Part.DECODE, self.decode_T))

    @property
    def queries(self) -> float:
        """Tokens of a running sequence in the decode part, mean: they share one reading of its keys."""
        decode_T = np.full(self.n_tokens, self.decodes_only) if self.decode_T is None else self.decode_T
        return max(1.0, float(decode_T.sum()) / max(1, int(self.ends_T()[decode_T].sum())))

    def beside(self, other: Step) -> Step:
        """Put a decode step's tokens beside a prefill step's: one mixed step.

        An empty one changes nothing.

        Raises
        ------
        ValueError
            The steps are not of prefill and decode, in this order.
        """
        if (self.phase, other.phase) != (Part.PREFILL, Part.DECODE):
            raise ValueError(f"phase = {self.phase!r}, {other.phase!r}: a decode step stands beside a prefill step")
        if not (self.n_tokens and other.n_tokens):
            return self if self.n_tokens else other
        both = (self, other)
        source_T = np.concatenate([step.source_T for step in both])
        order_T = np.argsort(source_T, kind="stable")
        marks = {
            "last_T": [np.ones(step.n_tokens, bool) if step.last_T is None else step.last_T for step in both],
            "decode_T": [np.full(step.n_tokens, step is other) for step in both],
            "end_T": [step.ends_T() for step in both],
        }
        return Step(
            token_T=np.concatenate([step.token_T for step in both])[order_T],
            source_T=source_T[order_T],
            context_T=np.concatenate([step.context_T for step in both])[order_T],
            phase="mixed",
            topic=self.topic if self.topic == other.topic else None,
            **{name: np.concatenate(parts)[order_T] for name, parts in marks.items()},
        )

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.token_T)

    def tokens_G(self, ranks: int) -> Int:
        """Tokens on each rank."""
        return np.bincount(self.source_T, minlength=ranks)

    def logits_G(self, ranks: int) -> Int:
        """Tokens on each rank whose logits are wanted."""
        return self.tokens_G(ranks) if self.last_T is None else np.bincount(self.source_T[self.last_T], minlength=ranks)

    def sequences_G(self, ranks: int) -> Int:
        """Running sequences on each rank: of decode every token is one, of prefill every run of rising contexts."""
        return np.bincount(self.source_T[self.ends_T()], minlength=ranks)

    def held_G(self, ranks: int, window: int | None = None) -> Int:
        """Keys of one layer that each rank's KV cache holds for the running sequences, at most `window` of each."""
        ends_T = self.ends_T()
        held_T = self.context_T[ends_T] if window is None else np.minimum(self.context_T[ends_T], window)
        return np.bincount(self.source_T[ends_T], held_T, ranks).astype(np.int64)

    def ends_T(self) -> Bool:
        """Tell which tokens are the last of their sequence in this step."""
        if self.end_T is not None:
            return self.end_T
        ends_T = np.ones(self.n_tokens, bool)
        if self.decode_T is None and not self.decodes_only:  # of a chunk, the last token's context
            ends_T[:-1] = (np.diff(self.context_T) != 1) | (np.diff(self.source_T) != 0)
        return ends_T
