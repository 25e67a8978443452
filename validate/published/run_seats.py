"""Sequences that a worker answers at a time, and who deals them, in runs with prefill on GPUs of its own.

What rows state of it is their concurrency over the ranks that answer, in every row: what was asked
of a rank, and no limit. TensorRT-LLM's `max_batch_size` was a power of two below: of a row marked
fit on B200 with 180 in flight on five workers 32 were answered at a time, not 36, of one on GB200
with 564 on four 121, not 141. Where one row of the same workers and lengths fits into less than
another has, one server ran both: of a row marked fit with 10 in flight on the same five workers 1.9
of 2 were. On H100 each row had servers of its own: of both marked fit, with 6 and 60 in flight on
three workers, 1 of 2 and 16 of 20 were answered at a time. Ranks by attention DP were asked for
what they may have, which is no power of two in three rows: 44.8 of 48 and 673 of 768 were in
flight in two of them (marked check).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from moecast.validate.published.row_files import SHIPPED, read_rows
from moecast.validate.published.serving import ServingRow

OWN_SERVERS = ("h100_sxm",)


def dealt_by(row: ServingRow) -> str:
    """How requests come to ranks.

    Before TensorRT-LLM, Dynamo's frontend (rows name its version), whose default is each worker in
    turn (`--router-mode round-robin`); the engine deals among its own ranks.
    """
    return "instances_in_turn" if row.engine == "trtllm" else "least_requests"


def seats_of(row: ServingRow) -> int:
    """Sequences that a rank of a worker that decodes may have."""
    asked = max(1, round(row.stated))
    if row.engine != "trtllm":
        return asked
    if row.gpu in OWN_SERVERS:
        return _power_of_two(max(1, asked - 1))
    most = max(asked, _most_asked().get(_server(row), 1))
    return most if row.dp > 1 else _power_of_two(most)


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _server(row: ServingRow) -> tuple[object, ...]:
    """What rows of one server have in common."""
    where = row.model, row.gpu, row.engine, row.version, row.precision
    return *where, row.isl, row.osl, row.workers, row.prefill, row.tp, row.dp, row.ep, row.etp


@lru_cache(maxsize=1)
def _most_asked() -> Mapping[tuple[object, ...], int]:
    """By server, the most that was asked of a rank in a row that ships."""
    found: dict[tuple[object, ...], int] = {}
    for fields in read_rows(SHIPPED / "serving.csv").rows:
        row = ServingRow.of(fields)
        found[_server(row)] = max(found.get(_server(row), 1), round(row.stated))
    return found
