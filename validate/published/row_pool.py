"""Workers of one kind in a serving run that others measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Number = Callable[..., float]
"""From a column's name, and what it is where empty, to its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPool:
    """How many workers there are, and how each is laid out: attention by `tp` and `dp`, experts by `ep` and `etp`."""

    workers: int
    tp: int
    dp: int
    ep: int | None
    etp: int

    @classmethod
    def of(cls, number: Number, kind: str) -> RowPool:
        """Read the columns that begin with a kind, `prefill` or `decode`.

        Raises
        ------
        ValueError
            A number that is none.
        """
        return cls(
            workers=max(1, int(number(f"{kind}_workers", 1))),
            tp=max(1, int(number(f"{kind}_attn_tp", 1))),
            dp=max(1, int(number(f"{kind}_attn_dp", 1))),
            ep=int(number(f"{kind}_moe_ep", 0)) or None,
            etp=max(1, int(number(f"{kind}_moe_tp", 1))),
        )

    @property
    def gpus(self) -> int:
        """Of all its workers."""
        return self.workers * self.tp * self.dp
