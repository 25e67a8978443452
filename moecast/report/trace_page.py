"""The page of a trace: what would mislead, the numbers that sum it up, and the pictures of its router at work."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from moecast.files import write_text
from moecast.report import trace_figures as figures
from moecast.report.html import Picture, render_page
from moecast.traces import TraceProfile

Draw = Callable[[TraceProfile], go.Figure]


def write_trace_page(profile: TraceProfile, path: str | Path, *, plan: str | None = None) -> None:
    """Write what is in a trace as one self-contained HTML file, whole or not at all.

    `plan` names the plan by which placement was counted; None says that experts stand in order.
    """
    write_text(path, render(profile, plan=plan))


def render(profile: TraceProfile, *, plan: str | None = None) -> str:
    """The page as text."""
    meta = profile.meta
    return render_page(
        "trace.html.j2",
        title=meta.model,
        size=f"{profile.stats.tokens:,} tokens × {meta.layers} MoE layers × {meta.choices} of {meta.experts} experts",
        notes=meta.notes,
        warnings=[finding.message for finding in profile.health if finding.severity == "warning"],
        remarks=[finding.message for finding in profile.health if finding.severity != "warning"],
        rows=_rows(profile, "experts in order" if plan is None else f"as {plan} places experts"),
        sections=_sections(profile, plan),
        sample=None if profile.sample_share >= 1 else f"{profile.sample_tokens:,}",
    )


def _rows(profile: TraceProfile, where: str) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each number; `where` says how experts stand."""
    stats, ranks, found = profile.stats, profile.n_ranks, profile.locality
    middle = min(len(found.lengths) - 1, 3)
    rows = [
        ("balance pooled", stats.balance_pooled, f"mean ÷ max load of {ranks} ranks, {where}"),
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
        ("drift, windows", profile.drift.windows.distance, _chance(profile.drift.windows.noise)),
        ("drift, topics", profile.drift.topics.distance, _chance(profile.drift.topics.noise)),
    ]
    shown = [(name, f"{value:.3f}", meaning) for name, value, meaning in rows if not math.isnan(value)]
    if profile.stability is not None:
        shown.append(
            ("tokens for a stable plan", profile.stability.verdict, "balance within 1 % of all planning tokens")
        )
    return shown


def _chance(noise: float) -> str:
    return "" if math.isnan(noise) else f"chance alone: {noise:.3f}"


# Section, figure, title, caption; those in `_WIDE` take the page's whole width.
_PICTURES: tuple[tuple[str, Draw, str, str], ...] = (
    ("Who is chosen", figures.load, "Load", "Choices of each expert over its layer's mean."),
    (
        "Who is chosen",
        figures.sorted_load,
        "The skew",
        "Experts from most to least loaded, a line per layer, later layers darker.",
    ),
    (
        "Who is chosen",
        figures.placements,
        "Balance by layer",
        "All tokens as one step: an upper bound on what single steps see.",
    ),
    (
        "Who is chosen together",
        figures.coactivation,
        "Who meets in a token",
        "Pairs over what loads make expect; blocks are what a placement can keep on one rank.",
    ),
    (
        "Who is chosen together",
        figures.transition,
        "From layer to layer",
        "P(next | now) ÷ P(next) between the two layers that tell each other most.",
    ),
    (
        "Who is chosen together",
        figures.affinity,
        "Affinity",
        "Bits that a choice tells about a choice at the next layer.",
    ),
    (
        "Who is chosen together",
        figures.fan_out,
        "Fan-out",
        "Distinct ranks per token and layer.",
    ),
    (
        "How alike neighbours choose, and why",
        figures.segments,
        "One group for many tokens",
        "Segment routing best performance, and segment cache best hit rate by size of the cache.",
    ),
    (
        "How alike neighbours choose, and why",
        figures.chunks,
        "Experts nobody asks",
        "What speculative decoding and caches live from: neighbours that choose alike.",
    ),
    (
        "How alike neighbours choose, and why",
        figures.dependence,
        "What a choice depends on",
        "Share explained by each alone (token before and same sequence: what they add to the token id).",
    ),
    (
        "How it changes",
        figures.windows,
        "Drift over the trace",
        "Part of the choices that would have to move from one window's load to another's.",
    ),
    (
        "How it changes",
        figures.topics,
        "Topics",
        "The same between topics: what a plan for one loses on another stands in the hover.",
    ),
    (
        "How it changes",
        figures.stability,
        "Tokens for a stable plan",
        "Dotted: within 1 % of a plan made on all planning tokens.",
    ),
    (
        "How it changes",
        figures.empty_choices,
        "Empty choices",
        "Dropped tokens, null experts or fewer choices than K.",
    ),
)
_WIDE = (figures.load, figures.dependence)


def _sections(profile: TraceProfile, plan: str | None) -> list[tuple[str, list[Picture]]]:
    """The pictures by section; what the trace cannot show is left out."""
    placed: dict[Draw, Draw] = {
        figures.placements: partial(figures.placements, plan=plan),
        figures.fan_out: partial(figures.fan_out, plan=plan),
    }
    left_out: dict[Draw, bool] = {
        figures.topics: len(profile.drift.topics.names) < 2,
        figures.stability: profile.stability is None,
        figures.empty_choices: not np.nanmax(profile.positions.empty_P, initial=0) > 0,
        figures.transition: profile.meta.layers < 2,
        figures.affinity: profile.meta.layers < 2,
    }
    sections: dict[str, list[Picture]] = {}
    for section, draw, title, caption in _PICTURES:
        if not left_out.get(draw):
            figure = placed.get(draw, draw)(profile)
            picture = Picture(figure=figure, title=title, caption=caption, wide=draw in _WIDE)
            sections.setdefault(section, []).append(picture)
    return list(sections.items())
