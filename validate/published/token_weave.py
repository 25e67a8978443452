"""TokenWeave's prefill of a model whose attention and experts are cut over the same eight ranks."""

from __future__ import annotations

from moecast.validate.published.questions import SharedTokensStep
from moecast.validate.published.row import Row, Source


def _rows(tokens: int, baseline_ms: float, without_ms: float, woven_ms: float) -> tuple[Row, ...]:
    ways = (
        ("baseline", baseline_ms, "sequential", True),
        ("without all-reduce", without_ms, "sequential", False),
        ("TokenWeave", woven_ms, "token-weave", True),
    )
    return tuple(
        Row(
            name=f"Mixtral-8x22B prefill, TP8, {tokens:,} tokens: {way}",
            value=value,
            unit="ms",
            use="check",
            question=SharedTokensStep(cluster="dgx-h100", tokens=tokens, schedule=schedule, sums=sums),
        )
        for way, value, schedule, sums in ways
    )


SOURCE = Source(
    name="TokenWeave",
    where="microsoft/tokenweave, its tables",
    conditions="8 x H100 DGX, bf16; taken to be one prompt",
    rows=(*_rows(4096, 121.4, 102.2, 107.7), *_rows(16_384, 471.0, 405.1, 399.2)),
)
