"""Rows tell their owners, and differ where their owners do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moecast.errors import MoecastError
from moecast.validate.replay import check_rows
from moecast.validate.rows import Rows

CPU = torch.device("cpu")


def rows(n: int = 5, **changes: object) -> Rows:
    fields = {"source_R": np.arange(n) % 2, "token_R": np.arange(n), "choice_R": np.arange(n) % 3, "layer": 4}
    return Rows(**(fields | changes))  # type: ignore[arg-type]


def test_the_header_names_the_owner() -> None:
    header_R4 = rows().fill(64, CPU)[:, :16].contiguous().view(torch.int32)
    assert header_R4[3].tolist() == [1, 3, 8, 0]


@pytest.mark.parametrize(
    "other", [rows(layer=5), rows().back(), rows(token_R=np.arange(5) + 1), rows(source_R=np.ones(5, np.int64))]
)
def test_other_owners_give_other_bytes(other: Rows) -> None:
    differs_RB = rows().fill(64, CPU) != other.fill(64, CPU)
    changed_R = (other.fill(64, CPU)[:, :16] != rows().fill(64, CPU)[:, :16]).any(1)
    assert changed_R.any()
    assert differs_RB[changed_R][:, 16:].all()


@pytest.mark.parametrize("row_bytes", [2, 16, 17, 7184])
def test_rows_of_any_width(row_bytes: int) -> None:
    assert rows().fill(row_bytes, CPU).shape == (5, row_bytes)
    assert rows(0).fill(row_bytes, CPU).shape == (0, row_bytes)


def test_one_wrong_byte_is_found_and_named() -> None:
    wanted = rows().fill(32, CPU)
    damaged = wanted.clone()
    damaged[3, 20] += 1
    check_rows(wanted.clone(), wanted, rows(), place="here")
    with pytest.raises(MoecastError, match=r"here: byte 20 of row 3 \(token 3 of rank 1, choice 0\)"):
        check_rows(damaged, wanted, rows(), place="here")
