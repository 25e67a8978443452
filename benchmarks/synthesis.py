"""Is synthetic routing like real routing? Statistics and placement gains beside those of held-out real sequences.

A trace's sequences are dealt at random into three parts of one size. A model is fitted to A; S is synthesised, as many
tokens as B holds. B and C are real and unknown to the model. Each statistic's distance from B's is printed for S
beside that of C: what a second real sample of the same size shows. Then plans: made on S and on C, both measured on
B; and the gain that S predicts of itself (planned on its first half, measured on its second) beside B's.
Averages over several deals; distances are averages of absolute values. And: what is copied, a synthesis twice as
long as what was fitted beside B and C together, another shape, and the speed.

Run: python benchmarks/synthesis.py [--part statistics|halves|placement|twice|lift|speed|command]
[--trace deepseek|prefill|decode] [--deals 3] [--before FOLDER, another checkout to compare `command` with]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moecast.placement import place
from moecast.sim import ModelShape, Plan, Workload, load_model, simulate
from moecast.topology import Cluster, load_cluster
from moecast.traces import (
    RoutingTrace,
    TraceModel,
    TraceProfile,
    concatenate,
    fit_trace,
    import_npz,
    load_LE,
    profile_trace,
    read_trace,
    shipped_trace_path,
    synthesise,
)

SHARED = Path(os.environ.get("MOECAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DEEPSEEK = SHARED / "traces" / "deepseek-v2-lite.npz"
TRACES = ("deepseek", "prefill", "decode")
PARTS = ("statistics", "halves", "placement", "twice", "lift", "speed", "command")
SOLVERS = ("eplb", "local-search")
ALL_CHOICES = 1 << 40
LENGTHS = (2, 8, 16)


def read(name: str) -> RoutingTrace:
    """The shared trace of DeepSeek-V2-Lite, or a phase of the shipped one."""
    return import_npz(DEEPSEEK) if name == "deepseek" else read_trace(shipped_trace_path(), phase=name)


def dealt(trace: RoutingTrace, seed: int) -> tuple[RoutingTrace, ...]:
    """Three parts of whole sequences, each with a third of the sequences of every topic."""
    rng = np.random.default_rng(seed)
    _, first_Q, sequence_T = np.unique(trace.sequence_T, return_index=True, return_inverse=True)
    part_Q = np.empty(len(first_Q), np.int64)
    for topic in np.unique(trace.topic_T[first_Q]):
        members = rng.permutation(np.flatnonzero(trace.topic_T[first_Q] == topic))
        part_Q[members] = np.arange(len(members)) % 3
    return tuple(trace.select(part_Q[sequence_T] == part) for part in range(3))


def made(model: TraceModel, tokens: int, seed: int, shape: str | None = None) -> RoutingTrace:
    """A synthetic trace in memory."""
    return concatenate(list(synthesise(model, shape=shape, tokens=tokens, seed=seed)))


def numbers(trace: RoutingTrace) -> dict[str, float]:
    """Every statistic of a profile that is one number."""
    profile = profile_trace(trace, n_ranks=8, lengths=LENGTHS, sample_choices=ALL_CHOICES)
    return dict(_numbers(profile, trace))


def _numbers(profile: TraceProfile, trace: RoutingTrace) -> Iterator[tuple[str, float]]:
    stats, near, depends = profile.stats, profile.locality, profile.dependence
    yield "Gini", stats.gini
    yield "balance_pooled, 8 ranks", stats.balance_pooled
    yield "fan-out, 8 ranks", stats.fan_out
    yield "crossings, 8 ranks", stats.crossings
    yield "co-activation, strength", profile.coactivation.strength
    yield "affinity, bits", profile.affinity.information
    yield "affinity, scaled", profile.affinity.affinity
    yield "token sparsity", profile.token_sparsity
    for place_M, length in enumerate(near.lengths):
        yield f"SRP, {length} tokens", float(near.srp_M[place_M])
    for ratio in (1.0, 2.0):
        at = near.cache_ratios.index(ratio)
        yield f"SCH, 16 tokens, cache {ratio:g} k", float(near.sch_MS[-1, at])
    for place_M, length in enumerate(near.lengths):
        yield f"chunk sparsity, {length} tokens", float(near.chunk_sparsity_M[place_M])
    for name in ("token_id", "previous", "sequence", "position", "topic"):
        share_L = getattr(depends, f"{name}_L")
        if share_L is not None:
            yield f"explained by {name.replace('_', ' ')}", float(np.nanmean(share_L))
    yield "drift between topics", profile.drift.topics.distance
    yield "drift between windows", profile.drift.windows.distance
    first, second = trace.split(0.5)
    yield "drift between halves of topics", load_distance(first, second)


def load_distance(one: RoutingTrace, two: RoutingTrace) -> float:
    """Total variation of the load, averaged over layers."""
    shares = [load / load.sum(axis=1, keepdims=True) for load in (load_LE(one), load_LE(two))]
    return float(np.abs(shares[0] - shares[1]).sum(axis=1).mean() / 2)


def novelty(trace: RoutingTrace, known: RoutingTrace) -> float:
    """Part of the tokens whose whole path no token of `known` has."""
    paths = {np.sort(row, axis=1).tobytes() for row in known.experts_TLK}
    return float(np.mean([np.sort(row, axis=1).tobytes() not in paths for row in trace.experts_TLK]))


def copied(known: RoutingTrace, seed: int) -> tuple[float, float, float]:
    """How much of a synthesis, as long as what it was fitted to, goes on as the source does.

    The part of its steps from a token to the next that `known` does not have, the part of its tokens from another
    sequence than most of theirs, and the length of the run, copied from one sequence, in which a token stands on
    average.
    """
    order_T = np.lexsort((known.position_T, known.sequence_T))
    sorted_T = dataclasses.replace(known.select(order_T), token_id_T=np.arange(known.n_tokens, dtype=np.int32))
    s = made(fit_trace(sorted_T), known.n_tokens, seed)
    assert s.token_id_T is not None
    donor_N, from_N = s.token_id_T, sorted_T.sequence_T[s.token_id_T]
    within_N = s.sequence_T[1:] == s.sequence_T[:-1]
    copied_N = within_N & (np.diff(donor_N) == 1) & (from_N[1:] == from_N[:-1])
    run_R = np.diff(np.concatenate([[-1], np.flatnonzero(~copied_N), [len(donor_N) - 1]]))
    most_B = [np.unique(part, return_counts=True)[1].max() for part in np.split(from_N, np.flatnonzero(~within_N) + 1)]
    return (
        1 - float(copied_N.sum() / within_N.sum()),
        1 - float(np.sum(most_B) / len(donor_N)),
        float(np.square(run_R).sum() / len(donor_N)),
    )


def statistics(name: str, deals: int) -> None:
    """Print every statistic of S and C beside B's."""
    trace = read(name)
    seen: dict[str, list[tuple[float, float, float]]] = {}
    apart = []
    for deal in range(deals):
        a, b, c = dealt(trace, deal)
        s = made(fit_trace(a), b.n_tokens, deal)
        of_b, of_c, of_s = numbers(b), numbers(c), numbers(s)
        for key, value in of_b.items():
            seen.setdefault(key, []).append((value, of_c[key], of_s[key]))
        apart.append([load_distance(c, b), load_distance(s, b), novelty(c, a), novelty(s, a), *copied(a, deal)])
    print(f"\n{name}: {trace.n_tokens} tokens, {deals} deals of a third each\n")
    print("| statistic | real, B | real, C | distance | synthetic, S | distance |\n|---|---:|---:|---:|---:|---:|")
    for key, triples in seen.items():
        of_X3 = np.array(triples)
        mean_3 = of_X3.mean(axis=0)
        far_2 = np.abs(of_X3[:, 1:] / of_X3[:, :1] - 1).mean(axis=0)
        print(
            f"| {key} | {mean_3[0]:.4f} | {mean_3[1]:.4f} | {100 * far_2[0]:.1f} % "
            f"| {mean_3[2]:.4f} | {100 * far_2[1]:.1f} % |"
        )
    of_c, of_s, new_c, new_s, steps, strangers, run = np.mean(apart, axis=0)
    print(f"| load: total variation from B | 0 | {of_c:.4f} | | {of_s:.4f} | |")
    print(f"| paths that A does not hold | | {new_c:.3f} | | {new_s:.3f} | |")
    print(
        f"\nsteps that A does not hold {steps:.3f}, tokens from another sequence {strangers:.3f}, copied run {run:.0f}"
    )


def halves(name: str, deals: int) -> None:
    """Print how far from B's the drift between each topic's halves is in A, C and S: A and C show what chance does."""
    trace = read(name)
    drift = []
    for deal in range(deals):
        a, b, c = dealt(trace, deal)
        s = made(fit_trace(a), b.n_tokens, deal)
        drift.append([load_distance(*part.split(0.5)) for part in (a, b, c, s)])
    of_4 = np.array(drift)
    far_4 = np.abs(of_4 / of_4[:, 1:2] - 1).mean(axis=0)
    print(f"\n{name}: drift between halves of topics, {deals} deals\n\n| | mean | distance from B |\n|---|---:|---:|")
    for part, mean, far in zip("ABCS", of_4.mean(axis=0), far_4, strict=True):
        print(f"| {part} | {mean:.4f} | {100 * far:.1f} % |", flush=True)


def twice(name: str, deals: int) -> None:
    """Print every statistic of a synthesis twice as long as what was fitted beside that of B and C together."""
    trace = read(name)
    far: dict[str, list[tuple[float, float]]] = {}
    for deal in range(deals):
        a, *others = dealt(trace, deal)
        real = concatenate(others)
        of_s = numbers(made(fit_trace(a), real.n_tokens, deal))
        for key, value in numbers(real).items():
            far.setdefault(key, []).append((value, of_s[key]))
    print(f"\n{name}: twice as many tokens as fitted, {deals} deals\n")
    print("| statistic | B and C | S | |\n|---|---:|---:|---:|")
    for key, pairs in far.items():
        value, of_s = np.mean(pairs, axis=0)
        print(f"| {key} | {value:.4f} | {of_s:.4f} | {100 * (of_s / value - 1):+.1f} % |")


def speed(name: str, shape: str) -> None:
    """Print choices made per CPU second, at the source's shape and another; donors fitted and lifted before."""
    trace = read(name)
    began = time.process_time()
    model = fit_trace(trace)
    print(f"\n{name}: fitted in {time.process_time() - began:.1f} s of CPU time", flush=True)
    for wanted in (None, shape):
        batches = synthesise(model, shape=wanted, tokens=1_500_000 if wanted is None else 400_000)
        began = time.process_time()
        skipped = next(batches)
        lifted = time.process_time()
        choices = sum(batch.experts_TLK.size for batch in batches)
        rate = choices / (time.process_time() - lifted)
        at = "x".join(map(str, skipped.meta.shape_LEK))
        print(
            f"{at}: first batch after {lifted - began:.1f} s, then {rate / 1e6:.0f} M choices per CPU second",
            flush=True,
        )


def command(shape: str, before: Path | None) -> None:
    """Print the CPU seconds of `moecast trace synth` of 40,000 tokens, with loops to compile and compiled."""
    here = Path(__file__).resolve().parents[1]
    spent: dict[str, list[float]] = {}
    for name, folder in (("before", before), ("now", here)):
        if folder is not None:
            with tempfile.TemporaryDirectory() as scratch:
                spent[name] = [_synth_cpu_s(folder, shape, Path(scratch)) for _ in ("cold", "warm")]
    print(f"\n`trace synth --like shipped --shape {shape} --tokens 40000`, CPU seconds\n")
    print("| | cold | warm |\n|---|---:|---:|")
    for name, seconds in spent.items():
        print(f"| {name} | {' | '.join(f'{s:.1f}' for s in seconds)} |")
    if before is not None:
        print(f"| before ÷ now | {' | '.join(f'{b / n:.1f}' for b, n in zip(*spent.values(), strict=True))} |")


def _synth_cpu_s(checkout: Path, shape: str, scratch: Path) -> float:
    """CPU seconds of one run; compiled loops are kept in `scratch`."""
    run = [sys.executable, "-m", "moecast", "trace", "synth", "--like", "shipped", "--shape", shape]
    out = scratch / "made.parquet"
    out.unlink(missing_ok=True)
    env = os.environ | {"PYTHONPATH": str(checkout), "NUMBA_CACHE_DIR": str(scratch / "compiled")}
    began = os.times()
    subprocess.run(
        [*run, "--tokens", "40000", "--out", str(out)], env=env, cwd=checkout, check=True, capture_output=True
    )
    ended = os.times()
    return ended.children_user + ended.children_system - began.children_user - began.children_system


def setting(name: str, trace: RoutingTrace) -> tuple[Cluster, ModelShape, Workload]:
    """16 GPUs, and the widths of DeepSeek-V2-Lite."""
    cluster = load_cluster("dgx-h200", nodes=2)
    widths = load_model("deepseek-v2-lite")
    if name == "deepseek":
        model = widths
    else:
        assert trace.meta.config is not None
        model = ModelShape.from_config(trace.meta.config, name=trace.meta.model).with_dims(widths)
    phase = "decode" if name == "decode" else "prefill"
    return cluster, model, Workload(phase=phase, tokens_per_rank=64 if phase == "decode" else 256, steps=8, reuse=True)


def step_s(cluster: Cluster, model: ModelShape, plan: Plan, trace: RoutingTrace, workload: Workload) -> float:
    """Mean step time by the rung fluid."""
    return simulate(cluster, model, plan, trace, workload, max_fluid_steps=4, gains=False).compared_s


def gains(
    cluster: Cluster, model: ModelShape, workload: Workload, on: RoutingTrace, measured: RoutingTrace
) -> dict[str, float]:
    """How much faster than the contiguous plan, in per cent, by solver; planned on one trace, measured on another."""
    times = {}
    for solver in ("contiguous", *SOLVERS):
        plan = place(cluster, model, on, workload, solver=solver, slots_per_rank=5, work_limit=100_000).plan
        times[solver] = step_s(cluster, model, plan, measured, workload)
    return {solver: 100 * (times["contiguous"] / times[solver] - 1) for solver in SOLVERS}


def placement(name: str, deals: int) -> None:
    """Print gains of plans made on S and C, measured on B, and what halves of S and of B predict."""
    trace = read(name)
    cluster, model, workload = setting(name, trace)
    found: dict[str, list[list[float]]] = {}
    for deal in range(deals):
        a, b, c = dealt(trace, deal)
        s = made(fit_trace(a), b.n_tokens, deal)
        for label, on, measured in (
            ("C, measured on B", c, b),
            ("S, measured on B", s, b),
            ("half of B, measured on the other", *b.split(0.5)),
            ("half of C, measured on the other", *c.split(0.5)),
            ("half of S, measured on the other", *s.split(0.5)),
        ):
            gain = gains(cluster, model, workload, on, measured)
            found.setdefault(label, []).append([gain[solver] for solver in SOLVERS])
    print(f"\n{name}: gain in step time over contiguous, per cent; 16 GPUs, 5 slots a rank, {deals} deals\n")
    print(f"| planned on | {' | '.join(SOLVERS)} |\n|---|{'---:|' * len(SOLVERS)}")
    for label, rows in found.items():
        cells = [
            f"{mean:.1f} ({', '.join(f'{x:.1f}' for x in each)})"
            for mean, each in zip(np.mean(rows, 0), np.transpose(rows), strict=True)
        ]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def lift(name: str, shape: str) -> None:
    """Print statistics that make sense at any shape, of a source and of what is made from it at another."""
    trace = read(name)
    model = fit_trace(trace)
    big = made(model, trace.n_tokens, 0, shape)
    rows = [scale_free(trace), scale_free(made(model, trace.n_tokens, 0)), scale_free(big)]
    source = f"{trace.meta.layers}x{trace.meta.experts}x{trace.meta.choices}"
    print(
        f"\n{name}\n\n| statistic | real, {source} | synthetic, {source} | synthetic, {shape} |\n|---|---:|---:|---:|"
    )
    for key in rows[0]:
        print(f"| {key} | {' | '.join(f'{row[key]:.3f}' for row in rows)} |")
    widths = load_model("deepseek-v3")
    cluster = load_cluster("dgx-h200", nodes=4)
    workload = Workload(
        phase="prefill",
        tokens_per_rank=256,
        steps=4,
        reuse=True,
        from_phase="decode" if name == "decode" else "prefill",
    )
    first, second = big.split(0.5)
    times = {}
    for solver in ("contiguous", *SOLVERS):
        plan = place(cluster, widths, first, workload, solver=solver, slots_per_rank=10, work_limit=100_000).plan
        times[solver] = step_s(cluster, widths, plan, second, workload)
    gain = {solver: f"{100 * (times['contiguous'] / times[solver] - 1):.1f} %" for solver in SOLVERS}
    print(f"\ngain over contiguous at {shape}, planned on one half, measured on the other, 32 GPUs: {gain}", flush=True)


def scale_free(trace: RoutingTrace) -> dict[str, float]:
    """Statistics whose chance level is taken out, so that shapes can be compared."""
    profile = profile_trace(trace, n_ranks=8, lengths=(1, 2, 8, 16), sample_choices=ALL_CHOICES)
    share_LE = load_LE(trace) / load_LE(trace).sum(axis=1, keepdims=True)
    used = float(np.mean(2 ** -(share_LE * np.log2(np.maximum(share_LE, 1e-12))).sum(axis=1))) / trace.meta.experts
    bits = float(profile.affinity.information / profile.affinity.entropy_L.mean())
    drift = profile.drift.topics
    found = {
        "Gini": profile.stats.gini,
        "effective experts ÷ experts": used,
        "affinity: bits ÷ bits there are": bits,
        "co-activation, strength": profile.coactivation.strength,
        "explained by topic": float(np.nanmean(profile.dependence.topic_L)),  # type: ignore[arg-type]
        "drift between topics": drift.distance,
        "balance_pooled, 8 ranks": profile.stats.balance_pooled,
        "fan-out, 8 ranks, ÷ of choices at random": profile.stats.fan_out
        / (8 * (1 - (1 - 1 / 8) ** trace.meta.choices)),
    }
    if profile.dependence.token_id_L is not None:
        found["explained by token id"] = float(np.nanmean(profile.dependence.token_id_L))
    for place_M, length in enumerate(profile.locality.lengths):
        if length > 1:
            hit = 1 - float(profile.locality.chunk_sparsity_M[place_M])
            random = 1 - (1 - trace.meta.choices / trace.meta.experts) ** length
            found[f"experts hit by {length} tokens ÷ at random"] = hit / random
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--trace", choices=TRACES, action="append")
    parser.add_argument("--deals", type=int, default=3)
    parser.add_argument("--shape", default="58x256x8")
    parser.add_argument("--before", type=Path)
    arguments = parser.parse_args()
    if "command" in (arguments.part or PARTS):
        command(arguments.shape, arguments.before)
    for name in arguments.trace or TRACES:
        if name == "deepseek" and not DEEPSEEK.exists():
            print(f"{name} skipped: {DEEPSEEK.name} is absent (set MOECAST_SHARED)")
            continue
        for part in arguments.part or PARTS:
            if part == "statistics":
                statistics(name, arguments.deals)
            elif part == "placement":
                placement(name, arguments.deals)
            elif part == "halves":
                halves(name, arguments.deals)
            elif part == "twice":
                twice(name, arguments.deals)
            elif part == "lift":
                lift(name, arguments.shape)
            elif part == "speed":
                speed(name, arguments.shape)


if __name__ == "__main__":
    main()
