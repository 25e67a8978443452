"""Seats of workers in public runs with prefill apart, who deals to them, and means of fewer rounds than measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moecast.validate.published.request_runs import ROUNDS, means_of
from moecast.validate.published.row_files import SHIPPED, read_rows
from moecast.validate.published.run_seats import dealt_by, seats_of
from moecast.validate.published.serving import ServingRow

ROWS = {fields["id"]: ServingRow.of(fields) for fields in read_rows(SHIPPED / "serving.csv").rows}


@pytest.mark.parametrize(
    ("id_", "seats"),
    [
        ("dsr1_h100_trtllm_fp8_disagg_1024x1024_c6_cfg494", 1),
        ("dsr1_h100_trtllm_fp8_disagg_1024x1024_c60_cfg494", 16),
        ("dsr1_b200_trtllm_fp4_disagg_1024x1024_c10_cfg320", 32),
        ("dsr1_b200_trtllm_fp4_disagg_1024x1024_c180_cfg320", 32),
        ("dsr1_gb200_trtllm_fp4_disagg_1024x1024_c4_cfg237", 128),
        ("dsr1_gb200_trtllm_fp4_disagg_1024x1024_c564_cfg237", 128),
        ("dsr1_gb200_sglang_fp4_disagg_1024x1024_c512_cfg483", 16),
    ],
)
def test_seats_of_rows_marked_fit(id_: str, seats: int) -> None:
    assert ROWS[id_].use == "fit"
    assert seats_of(ROWS[id_]) == seats


def test_seats_are_a_power_of_two_but_under_attention_dp_and_every_row_has_some() -> None:
    for row in ROWS.values():
        if row.mode == "disagg":
            seats = seats_of(row)
            assert seats >= 1
            assert row.engine != "trtllm" or row.dp > 1 or seats & (seats - 1) == 0
            assert dealt_by(row) == ("instances_in_turn" if row.engine == "trtllm" else "least_requests")


def served(ttft_Q: np.ndarray) -> Any:
    return SimpleNamespace(requests=len(ttft_Q), measures=SimpleNamespace(ttft_Q=ttft_Q, tpot_Q=2 * ttft_Q))


def test_means_of_all_rounds_are_plain_means() -> None:
    ttft_Q = np.random.default_rng(0).random(7 * ROUNDS)
    assert means_of(served(ttft_Q), ROUNDS) == pytest.approx((ttft_Q.mean(), 2 * ttft_Q.mean()))


def test_rounds_between_stand_for_eight() -> None:
    rounds_R = np.array([5.0, 1.0, 1.0, 3.0])
    mean, _ = means_of(served(np.repeat(rounds_R, 7)), 4)
    assert mean == pytest.approx((5 + 8 * 1 + 3) / ROUNDS)
