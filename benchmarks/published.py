"""What the simulator says of published measurements, with the error: `python benchmarks/published.py [SOURCE ...]`.

Names of sources restrict the table (as in its first column); `--readme` prints the README's table instead. No parameter
is fitted here: the hardware tables name the rows that theirs were fitted on, and only rows marked "fit" may be among
them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from moecast.validate.published import SOURCES, Outcome, markdown, outcome_of, predict, time_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadmeLine:
    """A line of the README's table: what it says of one row, or of two that belong together."""

    what: str
    hardware: str
    source: str
    rows: tuple[str, ...]


def _pair(what: str, hardware: str, source: str, name: str) -> ReadmeLine:
    rows = tuple(name.format(exchange) for exchange in ("dispatch", "combine"))
    return ReadmeLine(what=what, hardware=hardware, source=source, rows=rows)


README = (
    _pair(
        "low-latency dispatch / combine, 8 ranks (DeepEP)",
        "H800, RDMA",
        "DeepEP",
        "low-latency {}, 8 ranks, NICs only",
    ),
    _pair(
        "the same, 64 ranks, NVLink inside the node",
        "H800",
        "DeepEP",
        "low-latency {}, 64 ranks, NVLink inside the node",
    ),
    _pair("normal dispatch / combine, 16 ranks (DeepEP)", "H800", "DeepEP", "normal {}, 16 ranks"),
    _pair("the same, 32 ranks", "H800", "DeepEP", "normal {}, 32 ranks"),
    _pair("normal dispatch / combine of V2, 16 ranks", "H100", "DeepEP V2", "V2 {}, 16 ranks"),
    ReadmeLine(
        what="NCCL all-to-all, 8 MiB / 256 MiB (AIConfigurator)",
        hardware="8×H200",
        source="AIConfigurator",
        rows=("NCCL all-to-all, 8 GPUs, 8 MiB", "NCCL all-to-all, 8 GPUs, 256 MiB"),
    ),
    ReadmeLine(
        what="NCCL all-to-all over EFA, about 60 MiB / peak, 64 ranks (AWS)",
        hardware="8×8 B300",
        source="AWS",
        rows=tuple(
            f"B300, 16 EFA per node: NCCL all-to-all {size}, 64 ranks" for size in ("of about 60 MiB", "at its peak")
        ),
    ),
    ReadmeLine(
        what="NCCL all-to-all, one token per rank, 128 ranks (pplx)",
        hardware="H100",
        source="pplx-kernels",
        rows=("NCCL all-to-all, 128 ranks, one token per rank",),
    ),
    ReadmeLine(
        what="DeepSeek-V3 prefill step, EP32, even experts / as routed ¹ (SGLang)",
        hardware="4×8 H100",
        source="SGLang",
        rows=(
            "prefill, EP32, 16,384 tokens per GPU, prompts of 4,096, experts perfectly even",
            "the same as routed",
        ),
    ),
    ReadmeLine(
        what="DeepSeek-V3 decode step, EP72 (SGLang)",
        hardware="9×8 H100",
        source="SGLang",
        rows=("decode, EP72, 256 requests per GPU, context 2,000",),
    ),
)


def readme_table() -> str:
    """Write the README's table, from the predictions of this commit."""
    lines = ["| measured (source) | hardware | published | predicted | error | |", "|---|---|---:|---:|---:|---|"]
    by_name = {(source.name, row.name): (source, row) for source in SOURCES for row in source.rows}
    for line in README:
        outcomes = [outcome_of(*by_name[line.source, name]) for name in line.rows]
        lines.append(f"| {line.what} | {line.hardware} | {' | '.join(_cells(outcomes))} |")
    return "\n".join(lines)


def _cells(outcomes: list[Outcome]) -> list[str]:
    uses = dict.fromkeys(outcome.row.use for outcome in outcomes)
    return [
        _joined([time_text(outcome.published_s or 0.0, digits=3) for outcome in outcomes]),
        _joined([time_text(outcome.predicted_s or 0.0, digits=3) for outcome in outcomes]),
        _joined([f"{outcome.error:+.0%}".replace("-", "−").replace("%", " %") for outcome in outcomes]),
        " / ".join(uses),
    ]


def _joined(texts: list[str]) -> str:
    """Write "163 / 318 µs": a unit that all share once."""
    numbers, units = zip(*(text.split(" ") for text in texts), strict=True)
    return f"{' / '.join(numbers)} {units[0]}" if len(set(units)) == 1 else " / ".join(texts)


def main(wanted: list[str]) -> None:
    """Print the table."""
    if wanted == ["--readme"]:
        print(readme_table())
        return
    chosen = [source for source in SOURCES if not wanted or source.name in wanted]
    if not chosen:
        raise SystemExit(f"sources: {', '.join(source.name for source in SOURCES)}")
    print(markdown(predict(chosen)))
    print()
    for source in chosen:
        print(f"{source.name}: {source.where}. {source.conditions}.")


if __name__ == "__main__":
    main(sys.argv[1:])
