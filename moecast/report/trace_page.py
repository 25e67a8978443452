"""The page of a trace: what would mislead, the numbers that sum it up, and the pictures of its router at work."""

from __future__ import annotations

import math
from pathlib import Path

from moecast.files import write_text
from moecast.report import trace_figures as figures
from moecast.report.html import Picture, render_page
from moecast.traces import TraceProfile


def write_trace_page(profile: TraceProfile, path: str | Path) -> None:
    """Write what is in a trace as one self-contained HTML file, whole or not at all."""
    write_text(path, render(profile))


def render(profile: TraceProfile) -> str:
    """The page as text."""
    meta = profile.meta
    return render_page(
        "trace.html.j2",
        title=meta.model,
        size=f"{profile.stats.tokens:,} tokens × {meta.layers} MoE layers × {meta.choices} of {meta.experts} experts",
        notes=meta.notes,
        warnings=[finding.message for finding in profile.health if finding.severity == "warning"],
        remarks=[finding.message for finding in profile.health if finding.severity != "warning"],
        rows=_rows(profile),
        sections=_sections(profile),
        sample=None if profile.sample_share >= 1 else f"{profile.sample_tokens:,}",
    )


def _rows(profile: TraceProfile) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each number."""
    stats, ranks, found = profile.stats, profile.n_ranks, profile.locality
    middle = min(len(found.lengths) - 1, 3)
    rows = [
        ("balance pooled", stats.balance_pooled, f"mean ÷ max load of {ranks} ranks, experts in order"),
        ("Gini", stats.gini, "0: all experts alike; towards 1: one takes all"),
        ("fan-out", stats.fan_out, f"distinct ranks of {ranks} that hold a token's choices"),
        ("fan-out, domains", profile.fan_out_domains, f"the same over domains of {profile.domain_size} ranks"),
        ("crossings", stats.crossings, "pairs of choices at consecutive layers on different ranks"),
        ("co-activation", profile.coactivation.strength, "spread of pairs over what loads make expect; 0: none"),
        ("affinity, bits", profile.affinity.information, "what a choice tells about the next layer's"),
        (f"SRP, {found.lengths[middle]} tokens", found.srp_M[middle], "best F1 of one group of experts for them all"),
        (
            f"SCH, {found.lengths[middle]} tokens",
            found.sch_MS[middle][min(2, len(found.cache_sizes) - 1)],
            f"best hit rate of a cache of {found.cache_sizes[min(2, len(found.cache_sizes) - 1)]} experts",
        ),
        ("token sparsity", profile.token_sparsity, "experts that a token leaves alone"),
        (
            f"chunk sparsity, {found.lengths[middle]} tokens",
            found.chunk_sparsity_M[middle],
            "experts that all of them leave alone",
        ),
        ("drift, windows", profile.drift.windows.distance, f"chance alone: {profile.drift.windows.noise:.3f}"),
        ("drift, topics", profile.drift.topics.distance, f"chance alone: {profile.drift.topics.noise:.3f}"),
    ]
    shown = [(name, f"{value:.3f}", meaning) for name, value, meaning in rows if not math.isnan(value)]
    if profile.stability is not None:
        shown.append(
            ("tokens for a stable plan", profile.stability.verdict, "balance within 1 % of all planning tokens")
        )
    return shown


def _sections(profile: TraceProfile) -> list[tuple[str, list[Picture]]]:
    """The pictures by question; what the trace cannot show is left out."""
    pair = {"wide": False}
    load = [
        Picture.of(figures.load(profile), title="Load", caption="Choices of each expert over its layer's mean."),
        Picture.of(
            figures.sorted_load(profile),
            title="The skew",
            caption="Experts from most to least loaded, a line per layer, later layers darker.",
            **pair,
        ),
        Picture.of(
            figures.placements(profile),
            title="Balance by layer",
            caption="All tokens as one step: an upper bound on what single steps see.",
            **pair,
        ),
    ]
    together = [
        Picture.of(
            figures.coactivation(profile),
            title="Who meets in a token",
            caption="Pairs over what loads make expect; blocks are what a placement can keep on one rank.",
            **pair,
        ),
        Picture.of(
            figures.transition(profile),
            title="From layer to layer",
            caption="P(next | now) ÷ P(next) between the two layers that tell each other most.",
            **pair,
        ),
        Picture.of(
            figures.affinity(profile),
            title="Affinity",
            caption="Bits that a choice tells about a choice at the next layer.",
            **pair,
        ),
        Picture.of(
            figures.fan_out(profile),
            title="Fan-out",
            caption="Distinct ranks per token and layer, experts in order.",
            **pair,
        ),
    ]
    local = [
        Picture.of(
            figures.segments(profile),
            title="One group for many tokens",
            caption="Segment routing best performance, and segment cache best hit rate by size of the cache.",
            **pair,
        ),
        Picture.of(
            figures.chunks(profile),
            title="Experts nobody asks",
            caption="What speculative decoding and caches live from: neighbours that choose alike.",
            **pair,
        ),
        Picture.of(
            figures.dependence(profile),
            title="What a choice depends on",
            caption="Share explained by each alone (token before and same sequence: what they add to the token id).",
        ),
    ]
    drift = [
        Picture.of(
            figures.windows(profile),
            title="Drift over the trace",
            caption="Part of the choices that would have to move from one window's load to another's.",
            **pair,
        )
    ]
    if len(profile.drift.topics.names) > 1:
        caption = "The same between topics: what a plan for one loses on another stands in the hover."
        drift.append(Picture.of(figures.topics(profile), title="Topics", caption=caption, **pair))
    if profile.stability is not None:
        caption = "Dotted: within 1 % of a plan made on all planning tokens."
        drift.append(Picture.of(figures.stability(profile), title="Tokens for a stable plan", caption=caption, **pair))
    if profile.positions.empty_P.size and profile.positions.empty_P.max() > 0:
        caption = "Dropped tokens, null experts or fewer choices than K."
        drift.append(Picture.of(figures.empty_choices(profile), title="Empty choices", caption=caption, **pair))
    return [
        ("Who is chosen", load),
        ("Who is chosen together", together),
        ("How alike neighbours choose, and why", local),
        ("How it changes", drift),
    ]
