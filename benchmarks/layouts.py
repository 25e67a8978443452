"""Is the better layout named? Over the serving runs that others measured, layout against layout at one latency.

    python benchmarks/layouts.py [FOLDER] [--stated]

Reads FOLDER/measured/serving.csv (default: MOECAST_SHARED). Rows of one model, GPU, engine, element type, mode and
lengths are compared, `check` rows only. At every limit on the time per output token, a layout is worth the most
tokens/s of a GPU that it reaches within the limit. Of each pair of layouts whose measured worth differs by more than
10 %: is the better one named? In groups of five layouts and more: is the best measured one among our first three?
Predicted are steps without a queue: a decode step at the batch that was in flight, and in agg its share of prefill.
What was in flight was measured, and says part of the answer: with --stated the batch is the one that was configured.
"""

from __future__ import annotations

import csv
import itertools
import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from moecast.errors import MoecastError
from moecast.validate.published.serving import ServingRow
from moecast.validate.published.serving_rate import predicted_tpot_ms, tokens_per_s_per_gpu

LIMITS_MS = (10, 15, 20, 30, 40, 50, 75, 100)
DIFFER = 0.10
OF_GROUP = ("model", "gpu", "engine", "precision", "mode", "isl", "osl")
OF_LAYOUT = (
    "gpus", "prefill_workers", "prefill_attn_tp", "prefill_attn_dp", "prefill_moe_tp", "prefill_moe_ep",
    "decode_workers", "decode_attn_tp", "decode_attn_dp", "decode_moe_tp", "decode_moe_ep",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A run: what was measured, and what is predicted of it."""

    measured: tuple[float, float]
    predicted: tuple[float, float]


def main(folder: Path, *, stated: bool) -> None:
    """Print the table."""
    groups: dict[tuple[str, ...], dict[tuple[str, ...], list[Point]]] = defaultdict(lambda: defaultdict(list))
    unasked: Counter[str] = Counter()
    with (folder / "measured" / "serving.csv").open(encoding="utf-8") as file:
        for fields in csv.DictReader(file):
            if fields["use"] != "check":
                continue
            try:
                point = _point(fields, stated=stated)
            except (ValueError, MoecastError) as error:
                unasked[str(error).split(":")[0]] += 1
                continue
            groups[tuple(fields[name] for name in OF_GROUP)][tuple(fields[name] for name in OF_LAYOUT)].append(point)
    total: Counter[str] = Counter()
    print("| model | GPU, engine, type | mode, lengths | layouts | pairs | better named | best in first 3 |")
    print("|---|---|---|---:|---:|---:|---|")
    for group, layouts in sorted(groups.items()):
        if len(layouts) < 2:
            continue
        pairs, right, top, of_top = _judge(list(layouts.values()))
        total += Counter(pairs=pairs, right=right, top=top, of_top=of_top)
        mode, lengths = group[4], f"{group[5]}/{group[6]}"
        first = f"{top} of {of_top}" if of_top else ""
        print(
            f"| {group[0].rsplit('/')[-1]} | {', '.join(group[1:4])} | {mode} {lengths} | {len(layouts)} | {pairs} | "
            f"{right} | {first} |"
        )
    print(f"\n{total['right']} of {total['pairs']} pairs: {total['right'] / max(total['pairs'], 1):.1%}")
    print(f"best measured in our first three: {total['top']} of {total['of_top']} limits in groups of five and more")
    for reason, count in unasked.most_common():
        print(f"not asked, {count} rows: {reason}")


def _point(fields: dict[str, str], *, stated: bool) -> Point:
    row = ServingRow.of(fields)
    row = replace(row, batch=row.stated) if stated else row
    measured = float(fields["out_tok_s_gpu"]), row.tpot_ms
    tpot_ms = predicted_tpot_ms(row, fields)
    return Point(measured=measured, predicted=(tokens_per_s_per_gpu(row, fields, tpot_ms), tpot_ms))


def _worth(points: list[Point], limit_ms: float, *, measured: bool) -> float:
    """The most tokens/s of a GPU within the limit; 0 where no run is."""
    values = [point.measured if measured else point.predicted for point in points]
    return max((rate for rate, tpot in values if tpot <= limit_ms), default=0.0)


def _judge(layouts: list[list[Point]]) -> tuple[int, int, int, int]:
    """Pairs that differ, those named right; limits at which the best measured is in our first three, of how many."""
    pairs = right = top = of_top = 0
    for limit in LIMITS_MS:
        worth = [(_worth(one, limit, measured=True), _worth(one, limit, measured=False)) for one in layouts]
        there = [both for both in worth if both[0] > 0]  # measured within the limit at all
        for one, other in itertools.combinations(there, 2):
            if abs(one[0] - other[0]) > DIFFER * min(one[0], other[0]):
                pairs += 1
                right += (one[0] > other[0]) == (one[1] > other[1]) and one[1] != other[1]
        if len(there) >= 5:
            of_top += 1
            best = max(there)
            top += sum(both[1] > best[1] for both in there) < 3 and best[1] > 0
    return pairs, right, top, of_top


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--stated"]
    folder = Path(given[0] if given else os.environ.get("MOECAST_SHARED", "../shared"))
    main(folder, stated="--stated" in sys.argv)
