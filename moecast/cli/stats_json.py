"""What ``moecast trace stats --json`` prints; null where a number cannot be had."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from moecast.traces import LoadTable, Locality, TraceMeta, TraceProfile, TraceStats

# Keys that only a profile fills.
PROFILE_KEYS = (
    "fan_out_domains", "fan_out_domains_tokens", "coactivation", "affinity", "srp", "srp_size_ratio", "sch",
    "sch_rolling", "token_sparsity", "chunk_sparsity", "dependence", "positions", "drift", "stability", "health",
    "sample",
)  # fmt: skip


def counts_json(meta: TraceMeta, stats: TraceStats, ranks: int, placement: str) -> dict[str, Any]:
    """The numbers that counting alone gives; those of a profile are null."""
    return {
        **_head(meta, ranks, placement),
        "tokens": stats.tokens,
        "reason": None,
        "balance_pooled": _number(stats.balance_pooled),
        "gini": _number(stats.gini),
        "fan_out": _number(stats.fan_out),
        "fan_out_tokens": _shares(stats.fan_out_LF),
        "crossings": _number(stats.crossings),
        **dict.fromkeys(PROFILE_KEYS),
        "per_layer": [
            {name: _number(value) for name, value in row.items()} | {"load": stats.load_LE[layer].tolist()}
            for layer, row in enumerate(per_layer(meta, stats))
        ],
    }


def profile_json(profile: TraceProfile, placement: str) -> dict[str, Any]:
    """All numbers of a profile."""
    value = counts_json(profile.meta, profile.stats, profile.n_ranks, placement)
    local, depends, drift = profile.locality, profile.dependence, profile.drift
    lengths = [str(length) for length in local.lengths]
    value |= {
        "domain_size": profile.domain_size,
        "fan_out_domains": _number(profile.fan_out_domains),
        "fan_out_domains_tokens": _shares(profile.fan_out_domains_LF),
        "coactivation": {
            "strength": _number(profile.coactivation.strength),
            "noise": _mean(profile.coactivation.noise_L),
            "top": [_plain(pair) for pair in profile.coactivation.top],
        },
        "affinity": {
            "information_bits": _number(profile.affinity.information),
            "entropy_bits": _mean(profile.affinity.entropy_L),
            "affinity": _number(profile.affinity.affinity),
            "likeliest": _mean(profile.affinity.likeliest_L),
            "by_load": _mean(profile.affinity.by_load_L),
        },
        "srp": _by(lengths, local.srp_M),
        "srp_size_ratio": _by(lengths, local.size_ratio_M),
        "sch": {length: _by(_ratios(local), row_S) for length, row_S in zip(lengths, local.sch_MS, strict=True)},
        "sch_rolling": {
            length: _by(_ratios(local), row_S) for length, row_S in zip(lengths, local.rolling_sch_MS, strict=True)
        },
        "token_sparsity": _number(profile.token_sparsity),
        "chunk_sparsity": _by(lengths, local.chunk_sparsity_M),
        "dependence": {
            "chance": _mean(depends.chance_L),
            "token_id": _mean(depends.token_id_L),
            "previous": _mean(depends.previous_L),
            "sequence": _mean(depends.sequence_L),
            "position": _mean(depends.position_L),
            "topic": _mean(depends.topic_L),
            "entropy_bits": _mean(depends.entropy_L),
            "information_bits": _mean(depends.information_L),
            "information_share": _mean(depends.information_share_L),
            "repeated": depends.repeated,
            "repeated_pairs": depends.repeated_pairs,
            "tokens": depends.tokens,
        },
        "positions": [
            {"first": int(first), "last": int(last), "tokens": int(tokens), "empty": _number(empty)}
            for first, last, tokens, empty in zip(
                profile.positions.first_P,
                profile.positions.last_P,
                profile.positions.tokens_P,
                profile.positions.empty_P,
                strict=True,
            )
        ],
        "drift": {
            "window_tokens": drift.window_tokens,
            "windows": len(drift.windows.names),
            "distance": _number(drift.windows.distance),
            "noise": _number(drift.windows.noise),
            "neighbours": _number(drift.neighbours),
            "first_to_last": _number(drift.first_to_last),
            "balance_own": _number(drift.windows.balance_own),
            "balance_other": _number(drift.windows.balance_other),
            "topics": {
                "names": list(drift.topics.names),
                "tokens": drift.topics.tokens_C.tolist(),
                "distance": _number(drift.topics.distance),
                "noise": _number(drift.topics.noise),
                "balance_own": _number(drift.topics.balance_own),
                "balance_other": _number(drift.topics.balance_other),
            },
            "stable_tokens": None if profile.stability is None else profile.stability.stable_tokens,
        },
        "stability": None if profile.stability is None else _plain(profile.stability),
        "health": [_plain(finding) for finding in profile.health],
        "sample": {"tokens": profile.sample_tokens, "share": profile.sample_share},
    }
    layers = [row | _layer_json(profile, layer, lengths) for layer, row in enumerate(value["per_layer"])]
    return value | {"per_layer": layers}


def load_json(table: LoadTable, balance_pooled: float, gini_L: Any, ranks: int) -> dict[str, Any]:
    """What counts without tokens give, and why the rest is null."""
    gini = [_number(value) for value in gini_L]
    return {
        **_head(table.meta, ranks, "contiguous"),
        "tokens": None,
        "reason": "counts per layer and expert only: what a token chooses together, or after another, is not known",
        "balance_pooled": _number(balance_pooled),
        "gini": _mean(gini_L),
        "fan_out": None,
        "fan_out_tokens": None,
        "crossings": None,
        **dict.fromkeys(PROFILE_KEYS),
        "per_layer": [
            {"layer": _layer_id(table.meta, layer), "gini": gini[layer], "load": load_E.tolist()}
            for layer, load_E in enumerate(table.load_LE)
        ],
    }


def per_layer(meta: TraceMeta, stats: TraceStats) -> list[dict[str, Any]]:
    """The numbers of each layer and its most and least loaded experts."""
    balance_L, gini_L, fan_out_L = stats.balance_pooled_L, stats.gini_L, stats.fan_out_L
    crossings_L = [*stats.crossings_L, math.nan]  # from a layer to the next: the last has none
    rows = []
    for index, load_E in enumerate(stats.load_LE):
        used, mean = load_E.any(), load_E.mean() or math.nan
        hottest, coldest = int(load_E.argmax()), int(load_E.argmin())
        rows.append(
            {
                "layer": _layer_id(meta, index),
                "balance_pooled": balance_L[index],
                "gini": gini_L[index],
                "fan_out": fan_out_L[index],
                "crossings": crossings_L[index],
                "hottest": hottest if used else math.nan,
                "hottest_load_over_mean": load_E[hottest] / mean,
                "coldest": coldest if used else math.nan,
                "coldest_load_over_mean": load_E[coldest] / mean,
            }
        )
    return rows


def _layer_json(profile: TraceProfile, layer: int, lengths: list[str]) -> dict[str, Any]:
    local, depends = profile.locality, profile.dependence
    last = layer + 1 == profile.meta.layers
    return {
        "token_sparsity": _number(profile.token_sparsity_L[layer]),
        "coactivation": _number(profile.coactivation.strength_L[layer]),
        "information_bits": None if last else _number(profile.affinity.information_L[layer]),
        "affinity": None if last else _number(profile.affinity.affinity_L[layer]),
        "srp": _by(lengths, local.srp_LM[layer]),
        "sch": {
            length: _by(_ratios(local), row_S) for length, row_S in zip(lengths, local.sch_LMS[layer], strict=True)
        },
        "chunk_sparsity": _by(lengths, local.chunk_sparsity_LM[layer]),
        "token_id": None if depends.token_id_L is None else _number(depends.token_id_L[layer]),
        "previous": None if depends.previous_L is None else _number(depends.previous_L[layer]),
        "sequence": None if depends.sequence_L is None else _number(depends.sequence_L[layer]),
    }


def _head(meta: TraceMeta, ranks: int, placement: str) -> dict[str, Any]:
    return {
        "model": meta.model,
        "layers": meta.layers,
        "experts": meta.experts,
        "choices": meta.choices,
        "ranks": ranks,
        "placement": placement,
        "domain_size": None,
    }


def _layer_id(meta: TraceMeta, index: int) -> int:
    return index if meta.layer_ids is None else meta.layer_ids[index]


def _ratios(local: Locality) -> list[str]:
    return [f"{ratio:g}" for ratio in local.cache_ratios]


def _shares(counts_LF: Any) -> list[float] | None:
    """Part of the (token, layer) pairs with 0, 1, … K distinct ranks, at the layers with any choice."""
    from moecast.traces.statistics.summary import fan_out_counts_F

    counts_F = fan_out_counts_F(counts_LF)
    return [float(share) for share in counts_F / counts_F.sum()] if counts_F.sum() else None


def _by(names: list[str], values: Any) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(names, values, strict=True)}


def _mean(values: Any) -> int | float | None:
    from moecast.traces.statistics.summary import mean_known

    return _number(mean_known(values))


def _number(value: Any) -> int | float | None:
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    from moecast.traces.statistics.profile import plain

    return plain(value)
