"""The index: every choice has a row of its own, in a tile of its expert."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings

from moecast.kernels.permute import build_index, most_tiles, permute, unpermute
from tests.kernels.cases import layers, make_case


def index_of(sizes: dict[str, Any], device: torch.device, tile: int = 16) -> tuple[Any, torch.Tensor]:
    case = make_case(**sizes, device=device)
    ids_TK = case.experts_TK.where(case.experts_TK < 65535, -1).to(torch.int32)
    return build_index(ids_TK, sizes["experts"], tile), ids_TK


@given(sizes=layers(most_tokens=200).filter(lambda s: s["tokens"] > 0))
@settings(max_examples=25, deadline=None)
def test_every_choice_has_its_own_row_in_a_tile_of_its_expert(sizes: dict[str, Any], device: torch.device) -> None:
    index, ids_TK = index_of(sizes, device)
    expert_X, row_X = ids_TK.flatten(), index.row_X
    placed = row_X >= 0
    assert torch.equal(placed, expert_X >= 0)
    rows = row_X[placed].long()
    assert len(rows.unique()) == len(rows)
    assert torch.equal(index.expert_M[rows // index.tile], expert_X[placed])
    assert (rows % index.tile < index.rows_M[rows // index.tile]).all()
    assert int(index.rows_M.sum()) == len(rows)
    assert len(index.expert_M) == most_tiles(len(expert_X), sizes["experts"], index.tile)


def test_rows_keep_the_order_of_tokens_inside_an_expert(device: torch.device) -> None:
    sizes = {"tokens": 300, "experts": 3, "choices": 2, "hidden": 4, "width": 4}
    index, ids_TK = index_of(sizes, device)
    for expert in range(3):
        rows = index.row_X[ids_TK.flatten() == expert]
        assert (rows.diff() == 1).all()


def test_there_and_back_is_the_token_times_its_gates(device: torch.device) -> None:
    sizes = {"tokens": 17, "experts": 5, "choices": 3, "hidden": 33, "width": 4, "missing": 0.3}
    index, ids_TK = index_of(sizes, device)
    case = make_case(**sizes, device=device)
    back_TH = unpermute(permute(case.x_TH, index), index, case.gates_TK)
    total_T1 = (case.gates_TK * (ids_TK >= 0)).sum(1, keepdim=True)
    torch.testing.assert_close(back_TH, case.x_TH * total_T1)
