"""Which layout to train in: the search at the size of a large job, and what it names of measured pairs.

    python benchmarks/train_layouts.py [--nodes 256] [--batch 15360] [--timed 2] [--rows FILE] [--pairs | --search]

The search: DeepSeek-V3 in FP8 on 256 x dgx-h100 (2,048 GPUs), 15,360 sequences of 4,096 tokens, even routing; CPU
seconds and the most memory of each part, the winner and its certificate. The pairs: rows of training.csv that differ in
one thing, overlap or the microbatch; is the better of both named? Rows marked `fit` set four numbers;
a pair counts as judged where both rows are marked `check`. What is better by the dispatcher is told beside.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from training import LEAST_RATIO, Answer, Row, answer, pairs

from moecast.placement.layouts.training import FoundTraining, TrainingQuestion, find_training
from moecast.sim import load_model
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.sim.trace_layers import trace_of_layers
from moecast.sim.training import FP8, Recipe
from moecast.topology import load_cluster
from moecast.units import format_percent, format_s
from moecast.validate.published.row_files import SHIPPED, read_rows
from moecast.validate.published.training import unasked

SEQUENCE, MADE_TOKENS = 4096, 8192


def question(nodes: int, batch: int) -> TrainingQuestion:
    """DeepSeek-V3 as it might be trained on so many nodes."""
    model = load_model("deepseek-v3")
    trace = routing_by_law(
        parse_law("uniform"), model, tokens=MADE_TOKENS, sequence=SEQUENCE, phase="prefill", position=0, seed=0
    )
    return TrainingQuestion(
        cluster=load_cluster("dgx-h100", nodes=nodes),
        model=model,
        trace=trace_of_layers(trace, [0]),
        recipe=Recipe(sequence=SEQUENCE, batch=batch, precision=FP8),
    )


def search(nodes: int, batch: int, timed: int) -> None:
    """Search, and print what each part took."""
    asked, began, parts = question(nodes, batch), time.process_time(), dict[str, float]()
    last = [began, ""]

    def told(what: str, _done: int, _of: int) -> None:
        now = time.process_time()
        if last[1]:
            parts[str(last[1])] = parts.get(str(last[1]), 0.0) + now - float(last[0])
            print(f"  … {last[1]}: {parts[str(last[1])]:.0f} CPU s", file=sys.stderr, flush=True)
        last[:] = [now, what]

    found = find_training(asked, asked.cluster.n_gpus, timed=timed, progress=told)
    told("", 0, 1)
    show(found)
    for what, seconds in parts.items():
        print(f"  {what}: {seconds:.1f} CPU s")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"all of it: {time.process_time() - began:.0f} CPU s on one core, at most {most:.2f} GiB")


def show(found: FoundTraining) -> None:
    """Print what was found."""
    print(
        f"{found.legal:,} layouts on {found.gpus:,} GPUs, {len(found.fitted.layouts):,} fit, {found.left_out:,} cannot "
        f"win, {found.scored} scored, {len(found.timed)} timed whole by {found.network}"
    )
    for one in found.timed:
        told = one.prediction
        print(
            f"  {format_s(one.step_s)}, {told.tokens_per_s_per_gpu:,.0f} tokens/s per GPU, "
            f"{told.model_tflops_per_gpu:,.0f} TFLOP/s, {one.held_bytes / 2**30:.0f} GiB: {one.layout.name()}"
        )
    print(f"no layout is faster than the winner by more than {format_percent(found.gap)}")


def named(answers: Sequence[Answer]) -> None:
    """Print of each pair which is better, measured and predicted."""
    right, judged, check_right, check = 0, 0, 0, 0
    print(f"{'what':<18}{'of':<66}{'measured':>9}{'predicted':>10}  named")
    for what, one, other in pairs(answers):
        measured, predicted = other.measured_s / one.measured_s, other.predicted_s / one.predicted_s
        near = abs(measured - 1) <= LEAST_RATIO
        good = (measured < 1) == (predicted < 1)
        verdict = "near 1" if near else "yes" if good else "NO"
        print(f"{what:<18}{other.row['id']:<66}{measured:>9.3f}{predicted:>10.3f}  {verdict}")
        if not near:
            both = one.row["use"] == other.row["use"] == "check"
            right, judged = right + good, judged + 1
            check_right, check = check_right + (good and both), check + both
    print(f"the better one is named in {right} of {judged} pairs; where both rows are check: {check_right} of {check}")
    for name, one, other in dispatchers(answers):
        measured, predicted = other.measured_s / one.measured_s, other.predicted_s / one.predicted_s
        print(f"dispatcher, not judged: {name}: measured {measured:.3f}, predicted {predicted:.3f}")


def paired(rows: Sequence[Row]) -> list[Row]:
    """Those that can be asked and have a partner that differs in one thing."""
    plain = [
        Answer(row=row, measured_s=1.0, predicted_s=1.0, assumed="", cpu_s=0.0) for row in rows if not unasked(row)
    ]
    found = {id(end.row) for _, *ends in pairs(plain) for end in ends}
    return [one.row for one in plain if id(one.row) in found]


def dispatchers(answers: Sequence[Answer]) -> Iterator[tuple[str, Answer, Answer]]:
    """Rows that differ in the dispatcher alone."""
    same = ("source", "model", "gpus", "tp", "pp", "ep", "mbs", "overlap", "gbs")
    for one in answers:
        for other in answers:
            alike = all(one.row[name] == other.row[name] for name in same)
            if alike and one.row["dispatcher"] == "nccl" and other.row["dispatcher"].startswith("deepep"):
                yield f"{other.row['id']} over nccl", one, other


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=256)
    parser.add_argument("--batch", type=int, default=15360)
    parser.add_argument("--timed", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=SHIPPED / "training.csv")
    parser.add_argument("--pairs", action="store_true", help="Only the measured pairs.")
    parser.add_argument("--search", action="store_true", help="Only the search.")
    options = parser.parse_args()
    if not options.pairs:
        search(options.nodes, options.batch, options.timed)
    if not options.search:
        named([answer(row, network="bound") for row in paired(read_rows(options.rows).rows)])


if __name__ == "__main__":
    main()
