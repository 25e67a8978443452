"""What travels in a replay: rows of bytes of which each says whose it is, so that every byte can be checked.

Axes: R row, B byte of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

HEADER_BYTES = 16
# Odd factors, so that two rows that differ in one field differ in their filling too.
_FACTORS = (73, 151, 199, 31)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """The owners of some rows: a choice of a token of a rank at a layer, on its way out or back.

    Parameters
    ----------
    source_R, token_R, choice_R
        The rank that holds the token, the token and which of its choices.
    layer
        The MoE layer.
    returning
        Whether the rows are results on their way home.
    """

    source_R: npt.NDArray[np.int64]
    token_R: npt.NDArray[np.int64]
    choice_R: npt.NDArray[np.int64]
    layer: int
    returning: bool = False

    def __len__(self) -> int:
        return len(self.token_R)

    def fill(self, row_bytes: int, device: torch.device) -> Tensor:
        """Make the rows: uint8 [R, B]; source, token, layer and choice as int32, then bytes that follow from them."""
        turn = self.layer * 2 + int(self.returning)
        fields = (self.source_R, self.token_R, np.full(len(self), turn), self.choice_R)
        header_R4 = np.stack(fields, axis=1, dtype=np.int32, casting="same_kind")
        header_RB = torch.from_numpy(header_R4.view(np.uint8)).to(device)
        seed_R = torch.from_numpy(header_R4 @ np.array(_FACTORS, np.int32)).to(device)
        column_B = torch.arange(max(row_bytes - HEADER_BYTES, 0), dtype=torch.int32, device=device)
        filling_RB = (seed_R[:, None] + 7 * column_B).to(torch.uint8)
        return torch.cat([header_RB, filling_RB], dim=1)[:, :row_bytes].contiguous()

    def back(self) -> Rows:
        """Name the same rows on their way home."""
        return replace(self, returning=True)
