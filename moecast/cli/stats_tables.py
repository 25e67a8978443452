"""What ``moecast trace stats`` prints for people: each number with what it means, by layer, and what would mislead."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from moecast.cli.stats_json import per_layer
from moecast.cli.trace_tables import plain_text, table
from moecast.traces.statistics.summary import fan_out_counts_F, mean_known
from moecast.units import format_count

if TYPE_CHECKING:
    from moecast.traces import Dependence, Finding, LoadTable, Locality, TraceMeta, TraceProfile, TraceStats


def counts_table(meta: TraceMeta, stats: TraceStats, ranks: int, placement: str) -> Table:
    """Load and placement of the whole trace."""
    where = "in order" if placement == "contiguous" else f"as {placement} places them"
    shown = table(f"{meta.experts} experts {where} on {ranks} ranks, all tokens as one step", "", "", "")
    _row(shown, "tokens", f"{stats.tokens:,}", "")
    _row(shown, "choices", format_count(int(stats.load_LE.sum())), "experts chosen, all layers")
    _row(shown, "balance_pooled", _three(stats.balance_pooled), "mean ÷ max load of the ranks; 1 is even")
    _row(shown, "gini", _three(stats.gini), "unevenness of the experts' load; 0 is even, 1 all on one")
    _row(
        shown, "fan-out", _three(stats.fan_out), "ranks that a token is sent to at a layer" + _spread(stats.fan_out_LF)
    )
    _row(shown, "crossings", _three(stats.crossings), "pairs of choices at a layer and the next on different ranks")
    return shown


def profile_table(profile: TraceProfile) -> Table:
    """What the rest of a profile says, one line a number."""
    shown = table(f"what is in it{_sampled(profile)}", "", "", "")
    domains = f"domains of {profile.domain_size} ranks that a token is sent to"
    _row(shown, "fan-out, domains", _three(profile.fan_out_domains), domains + _spread(profile.fan_out_domains_LF))
    pairs = profile.coactivation
    best = "".join(f"; {p.experts[0]} and {p.experts[1]} at layer {p.layer}: {p.lift:.1f} ×" for p in pairs.top[:1])
    noise = _three(mean_known(pairs.noise_L))
    _row(
        shown, "co-activation", _three(pairs.strength), f"how far pairs are from what loads give ({noise}: noise){best}"
    )
    told = profile.affinity
    most = "–" if math.isnan(told.information) else f"{mean_known(told.entropy_L):.2f}"
    _row(shown, "affinity", _three(told.affinity), "0: the next layer's expert is chosen anew; 1: this one settles it")
    _row(
        shown, "information", _three(told.information), f"bits that a choice tells of one at the next layer, of {most}"
    )
    _locality_rows(shown, profile.locality, profile.token_sparsity)
    _dependence_rows(shown, profile.dependence)
    _drift_rows(shown, profile)
    empty_P = profile.positions.empty_P
    if np.nanmax(empty_P, initial=0) > 0:
        text = ", ".join(
            f"{first:,}+: {100 * empty:.1f} %"
            for first, empty in zip(profile.positions.first_P, empty_P, strict=True)
            if not math.isnan(empty)
        )
        _row(shown, "empty choices", "", f"by position in the sequence: {text}")
    return shown


def layers_table(meta: TraceMeta, stats: TraceStats) -> Table:
    """The counts by layer, with its most and least loaded experts."""
    heads = (
        "layer", "balance_pooled", "gini", "fan-out", "crossings", "hottest", "load ÷ mean", "coldest", "load ÷ mean",
    )  # fmt: skip
    shown = table("by layer", *heads, right=range(len(heads)))
    for row in per_layer(meta, stats):
        numbers = (_three(row[name]) for name in ("balance_pooled", "gini", "fan_out", "crossings"))
        ends = (_expert(row, name) for name in ("hottest", "coldest"))
        shown.add_row(str(row["layer"]), *numbers, *itertools.chain.from_iterable(ends))
    return shown


def _expert(row: dict[str, Any], name: str) -> tuple[str, str]:
    """An expert's id and its load; dashes for a layer without any choice."""
    return ("–", "–") if math.isnan(row[name]) else (str(row[name]), f"{row[name + '_load_over_mean']:.2f}")


def load_table(counts: LoadTable, balance_pooled: float, gini: float, ranks: int) -> Table:
    """What counts without tokens give."""
    shown = table(f"{counts.meta.experts} experts in order on {ranks} ranks, counts only", "", "", "")
    _row(shown, "choices", format_count(int(counts.load_LE.sum())), "experts chosen, all layers")
    _row(shown, "balance_pooled", _three(balance_pooled), "mean ÷ max load of the ranks; 1 is even")
    _row(shown, "gini", _three(gini), "unevenness of the experts' load; 0 is even, 1 all on one")
    _row(shown, "the rest", "–", "needs tokens: what one chooses together, or after another, is not in a load table")
    return shown


def health_lines(findings: tuple[Finding, ...]) -> list[Text]:
    """What would mislead, a line each."""
    if not findings:
        return [Text("health: nothing found that would mislead", style="green")]
    styles = {"warning": "yellow", "note": "cyan"}
    lines = []
    for finding in findings:
        line = Text(f"{finding.severity}: ", style=styles[finding.severity])
        line.append_text(plain_text(finding.message))
        line.append(f" [{finding.code}]", style="dim")
        lines.append(line)
    return lines


def _locality_rows(shown: Table, local: Locality, token_sparsity: float) -> None:
    short, long = _lengths(local)
    _row(shown, "token sparsity", _three(token_sparsity), "part of the experts that a token does not choose")
    for m in (short, long):
        length = local.lengths[m]
        _row(
            shown,
            f"chunk sparsity, {length}",
            _three(local.chunk_sparsity_M[m]),
            f"part of the experts that none of {length} neighbouring tokens chooses",
        )
    for m in (short, long):
        length, ratio = local.lengths[m], float(local.size_ratio_M[m])
        text = f"F1 of the best router that fixes its experts for {length} tokens"
        text += "" if math.isnan(ratio) else f"; it takes {ratio:.2f} × as many as a token"
        _row(shown, f"SRP, {length}", _three(local.srp_M[m]), text)
    cache = local.cache_ratios.index(2.0) if 2.0 in local.cache_ratios else len(local.cache_ratios) - 1
    if local.cache_ratios:
        length = local.lengths[long]
        text = f"part of the choices of {length} tokens that their {local.cache_sizes[cache]} most chosen experts serve"
        _row(shown, f"SCH, {length}, {local.cache_ratios[cache]:g} ×", _three(local.sch_MS[long, cache]), text)


def _lengths(local: Locality) -> tuple[int, int]:
    """Columns to print: windows of 4 and 16 where there are such, the papers' own."""
    short = local.lengths.index(4) if 4 in local.lengths else 0
    return short, local.lengths.index(16) if 16 in local.lengths else len(local.lengths) - 1


def _dependence_rows(shown: Table, depends: Dependence) -> None:
    if depends.token_id_L is None:
        _row(shown, "token id", "–", "not recorded: what the id explains and what context adds cannot be told")
    else:
        text = "of what varies in a token's choices is explained by its id"
        _row(shown, "token id", _three(mean_known(depends.token_id_L)), text)
        _row(shown, "+ token before", _three(mean_known(depends.previous_L)), "more by the id of the token before")
        _row(shown, "+ same sequence", _three(mean_known(depends.sequence_L)), "more by standing in the same sequence")
        _row(
            shown,
            "id, entropy",
            _three(mean_known(depends.information_share_L)),
            "the same as a part of the bits to tell",
        )
    _row(shown, "position", _three(mean_known(depends.position_L)), "explained by the position alone")
    if depends.topic_L is not None:
        _row(shown, "topic", _three(mean_known(depends.topic_L)), "explained by the topic alone")


def _drift_rows(shown: Table, profile: TraceProfile) -> None:
    windows, topics = profile.drift.windows, profile.drift.topics
    if len(windows.names) > 1:
        text = (
            f"load that moves between two of {len(windows.names)} windows of "
            f"{profile.drift.window_tokens:,} tokens ({_three(windows.noise)}: noise); a plan of "
            f"one gets balance {_three(windows.balance_other)} on another, "
            f"{_three(windows.balance_own)} on its own"
        )
        _row(shown, "drift, windows", _three(windows.distance), text)
    if len(topics.names) > 1:
        text = (
            f"load that moves between two of {len(topics.names)} topics ({_three(topics.noise)}: "
            f"noise); a plan of one gets balance {_three(topics.balance_other)} on another, "
            f"{_three(topics.balance_own)} on its own"
        )
        _row(shown, "drift, topics", _three(topics.distance), text)
    if profile.stability is None:
        _row(shown, "stable plan", "–", "needs 8 sequences: some to plan on, others to measure on")
    else:
        _row(shown, "stable plan", "", f"within 1 % of the balance of a plan of all: {profile.stability.verdict}")


def _sampled(profile: TraceProfile) -> str:
    if profile.sample_tokens == profile.stats.tokens:
        return ""
    return f" (locality, dependence and the stable plan: a sample of {profile.sample_tokens:,} tokens)"


def _spread(counts_LF: Any) -> str:
    """The fan-outs between which nine tenths of the tokens lie."""
    counts_F = fan_out_counts_F(counts_LF)
    if not counts_F.sum():
        return ""
    reached_F = counts_F.cumsum() / counts_F.sum()
    low, high = int(np.searchsorted(reached_F, 0.05)), int(np.searchsorted(reached_F, 0.95))
    return f", 5th to 95th percentile {low} to {high}"


def _row(shown: Table, name: str, value: str, meaning: str) -> None:
    shown.add_row(name, value, meaning)


def _three(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
