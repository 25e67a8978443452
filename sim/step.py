"""The Step: the tokens of one forward pass, and what each rank holds of them.

Axes: T token, G DP rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moecast.arrays import index, whole_numbers
from moecast.sim.layout import MOST_RANKS

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

PHASES = ("prefill", "decode")
"""The phases that can be simulated; training's backward pass is not."""

MOST_CONTEXT = 1 << 32
"""Traces number positions in 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """The tokens of one forward pass.

    Parameters
    ----------
    token_T
        int64; each token's row in the trace. Sorted by rank; within a rank a sequence's tokens stand in order.
    source_T
        int32; the DP rank that holds it.
    context_T
        int64; how many keys it attends to, itself included.
    phase
        `prefill` or `decode`.
    topic
        The topic of all its tokens, where the step was drawn from one.
    last_T
        Whether the token's logits are wanted: the last of a prompt in prefill, every token in decode. None: all.

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
    last_T: npt.NDArray[np.bool_] | None = None

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
        if self.last_T is not None:
            last_T = np.asarray(self.last_T)
            if last_T.dtype != np.bool_:
                raise TypeError(f"last_T: must be truth values, not {last_T.dtype}")
            if last_T.shape != shape:
                raise ValueError(f"last_T: shape {list(last_T.shape)}, must be [{shape[0]}]")
            object.__setattr__(self, "last_T", last_T)

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

    def _only(self, chosen_T: npt.NDArray[np.bool_]) -> Step:
        return replace(
            self,
            token_T=self.token_T[chosen_T],
            source_T=self.source_T[chosen_T],
            context_T=self.context_T[chosen_T],
            last_T=None if self.last_T is None else self.last_T[chosen_T],
        )

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.token_T)

    def tokens_G(self, ranks: int) -> Int:
        """Tokens on each rank."""
        return np.bincount(self.source_T, minlength=ranks)

    def context_sum_G(self, ranks: int, window: int | None = None) -> Int:
        """Keys that each rank's tokens attend to, at most `window` each."""
        keys_T = self.context_T if window is None else np.minimum(self.context_T, window)
        return np.bincount(self.source_T, keys_T, ranks).astype(np.int64)

    def logits_G(self, ranks: int) -> Int:
        """Tokens on each rank whose logits are wanted."""
        return self.tokens_G(ranks) if self.last_T is None else np.bincount(self.source_T[self.last_T], minlength=ranks)

    def sequences_G(self, ranks: int) -> Int:
        """Running sequences on each rank: of decode every token is one, of prefill every run of rising contexts."""
        return np.bincount(self.source_T[self._ends_T()], minlength=ranks)

    def held_G(self, ranks: int, window: int | None = None) -> Int:
        """Keys of one layer that each rank's KV cache holds for the running sequences, at most `window` of each."""
        ends_T = self._ends_T()
        held_T = self.context_T[ends_T] if window is None else np.minimum(self.context_T[ends_T], window)
        return np.bincount(self.source_T[ends_T], held_T, ranks).astype(np.int64)

    def _ends_T(self) -> npt.NDArray[np.bool_]:
        """Which tokens are the last of their sequence in this step."""
        ends_T = np.ones(self.n_tokens, bool)
        if self.phase == "prefill" and self.n_tokens:  # of a chunk, the last token's context
            ends_T[:-1] = (np.diff(self.context_T) != 1) | (np.diff(self.source_T) != 0)
        return ends_T
