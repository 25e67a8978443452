"""The pictures of a trace: each takes a `TraceProfile` and gives a plotly figure.

Axes: L MoE layer, E expert, C part, F fan-out, M window length, S cache size, N planning size, P
bucket of positions.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from moecast.report.drawing import alike_together, centres, divided, lifts, shades
from moecast.report.figures import PLAN_COLOURS, finished
from moecast.traces import LoadDistances, TraceProfile, contiguous_ranks_LE, packed_ranks_LE
from moecast.traces.statistics.summary import fan_out_counts_F

Floats = npt.NDArray[np.float64]

_DEPENDENCE_COLOURS = {
    "token id": "#4c78a8",
    "token before": "#9ecae9",
    "same sequence": "#f58518",
    "topic": "#54a24b",
    "position": "#b279a2",
}


def load(profile: TraceProfile) -> go.Figure:
    """Choices of each expert in each layer over the layer's mean, on a scale that halving and doubling share."""
    load_LE = profile.stats.load_LE.astype(float)
    ratio_LE = load_LE / np.maximum(load_LE.mean(axis=1, keepdims=True), 1e-300)
    return lifts(ratio_LE, _layer_names(profile), x="expert", y="MoE layer", what="load ÷ mean", square=False)


def sorted_load(profile: TraceProfile) -> go.Figure:
    """Each layer's experts from the most to the least loaded: the skew that balancing has left."""
    load_LE = profile.stats.load_LE.astype(float)
    ratio_LE = np.sort(load_LE / np.maximum(load_LE.mean(axis=1, keepdims=True), 1e-300), axis=1)[:, ::-1]
    figure = go.Figure()
    for row_E, name, colour in zip(ratio_LE, _layer_names(profile), shades(len(ratio_LE)), strict=True):
        hover = f"layer {name}, rank %{{x}}: %{{y:.2f}} × mean<extra></extra>"
        figure.add_scatter(
            x=list(range(1, len(row_E) + 1)), y=row_E, name=name, line={"color": colour}, hovertemplate=hover
        )
    figure.add_hline(y=1, line_dash="dot", line_color="#5b6675")
    figure.update_layout(xaxis_title="experts, most loaded first", yaxis_title="load ÷ mean", showlegend=False)
    return finished(figure, height=320)


def coactivation(profile: TraceProfile, layer: int | None = None) -> go.Figure:
    """How often two experts of a layer meet in a token, over what their loads make expect.

    Experts that meet the same others stand together. `layer` is an index into the MoE layers; by
    default the one where co-activation is strongest.
    """
    counts_LEE = profile.stats.coactivation_LEE
    assert counts_LEE is not None
    layer = _strongest(profile.coactivation.strength_L) if layer is None else layer
    met_EE = counts_LEE[layer].astype(float)
    load_E = met_EE.diagonal().copy()
    np.fill_diagonal(met_EE, 0)
    expected_EE = np.outer(load_E, load_E)
    np.fill_diagonal(expected_EE, 0)
    expected_EE *= met_EE.sum() / max(expected_EE.sum(), 1e-300)
    lift_EE = divided(met_EE, expected_EE)
    np.fill_diagonal(lift_EE, 1)
    order = alike_together(lift_EE)
    names = [str(expert) for expert in order]
    what = f"expert of layer {_layer_names(profile)[layer]}"
    return lifts(lift_EE[np.ix_(order, order)], names, names, x=what, y=what, what="met ÷ expected", square=True)


def transition(profile: TraceProfile, layer: int | None = None) -> go.Figure:
    """What an expert now says about the next layer's: P(next | now) ÷ P(next), both sides ordered by likeness.

    `layer` is the earlier layer's index; by default the one that tells most.
    """
    counts_LEE = profile.stats.transition_LEE
    assert counts_LEE is not None
    if not len(counts_LEE):
        return finished(go.Figure(), height=120)
    layer = _strongest(profile.affinity.information_L) if layer is None else layer
    pairs_EE = counts_LEE[layer].astype(float)
    expected_EE = np.outer(pairs_EE.sum(axis=1), pairs_EE.sum(axis=0)) / max(pairs_EE.sum(), 1)
    lift_EE = divided(pairs_EE, expected_EE)
    rows = alike_together(lift_EE)
    columns = np.argsort(centres(lift_EE[rows]), kind="stable")
    names = _layer_names(profile)
    return lifts(
        lift_EE[np.ix_(rows, columns)],
        [str(expert) for expert in rows],
        [str(expert) for expert in columns],
        x=f"expert of layer {names[layer + 1]}",
        y=f"expert of layer {names[layer]}",
        what="× its load",
        square=True,
    )


def affinity(profile: TraceProfile) -> go.Figure:
    """Bits that a choice tells about a choice at the next layer, by layer."""
    found, names = profile.affinity, _layer_names(profile)
    steps = [f"{here} → {there}" for here, there in pairwise(names)]
    figure = go.Figure(
        go.Bar(
            x=steps,
            y=found.information_L,
            customdata=np.stack([found.entropy_L, found.likeliest_L, found.by_load_L], axis=1),
            marker_color=PLAN_COLOURS[2],
            hovertemplate="%{x}: %{y:.2f} of %{customdata[0]:.2f} bits; the likeliest hold %{customdata[1]:.0%}, "
            "by load alone %{customdata[2]:.0%}<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title="from layer to layer", yaxis_title="bits")
    return finished(figure, height=300)


def fan_out(profile: TraceProfile, *, plan: str | None = None) -> go.Figure:
    """How many ranks a token's choices lie on; of experts in order, beside choices dealt at random to them."""
    counts_LF = profile.stats.fan_out_LF
    assert counts_LF is not None
    counts_F = fan_out_counts_F(counts_LF)
    share_F = counts_F / max(counts_F.sum(), 1)
    last = max(int(np.flatnonzero(share_F).max(initial=0)), 1)
    chance_F = _random_fan_out(profile) if plan is None else None
    figure = go.Figure()
    figure.add_bar(x=list(range(last + 1)), y=share_F[: last + 1], name="this trace", marker_color=PLAN_COLOURS[2])
    if chance_F is not None:
        figure.add_scatter(
            x=list(range(last + 1)),
            y=chance_F[: last + 1],
            name="random choices",
            mode="lines+markers",
            line={"color": "#7a8594", "dash": "dot"},
        )
    figure.update_layout(
        xaxis_title=f"distinct ranks of {profile.n_ranks}", yaxis_title="tokens × layers", yaxis_tickformat=".0%"
    )
    return finished(figure, height=300)


def segments(profile: TraceProfile) -> go.Figure:
    """How well one fixed group of experts serves m tokens in a row (SRP), and the best cache of ⌊ρ·k⌋ experts (SCH)."""
    found = profile.locality
    figure = go.Figure()
    figure.add_scatter(
        x=found.lengths, y=found.srp_M, name="SRP", mode="lines+markers", line={"color": "#1c2430", "width": 3}
    )
    for index, (ratio, size) in enumerate(zip(found.cache_ratios, found.cache_sizes, strict=True)):
        figure.add_scatter(
            x=found.lengths,
            y=found.sch_MS[:, index],
            name=f"SCH, {size} experts (ρ {ratio:g})",
            mode="lines+markers",
            line={"color": shades(len(found.cache_sizes))[index]},
        )
    figure.update_layout(xaxis_title="tokens in a row", yaxis_title="F1 or hit rate", yaxis_range=[0, 1.02])
    figure.update_xaxes(type="log", tickvals=list(found.lengths), ticktext=[str(m) for m in found.lengths])
    return finished(figure, height=360)


def chunks(profile: TraceProfile) -> go.Figure:
    """Part of the experts that m tokens in a row leave alone, beside tokens that choose by load, each for itself."""
    found = profile.locality
    load_LE = profile.stats.load_LE
    chosen_LE = load_LE[load_LE.any(axis=1)] / max(profile.stats.tokens, 1)
    alone_M = [float(((1 - chosen_LE) ** length).mean()) for length in found.lengths]
    lengths = [1, *found.lengths]
    figure = go.Figure()
    figure.add_scatter(
        x=lengths,
        y=[profile.token_sparsity, *found.chunk_sparsity_M],
        name="this trace",
        mode="lines+markers",
        line={"color": PLAN_COLOURS[2], "width": 3},
    )
    figure.add_scatter(
        x=lengths,
        y=[profile.token_sparsity, *alone_M],
        name="each token for itself, by load",
        mode="lines+markers",
        line={"color": "#7a8594", "dash": "dot"},
    )
    figure.update_layout(xaxis_title="tokens in a row", yaxis_title="experts not chosen", yaxis_tickformat=".0%")
    figure.update_xaxes(type="log", tickvals=lengths, ticktext=[str(m) for m in lengths])
    return finished(figure, height=360)


def dependence(profile: TraceProfile) -> go.Figure:
    """What a choice depends on, by layer: share of the choices that each explains; they overlap and do not add up."""
    found = profile.dependence
    measured = {
        "token id": found.token_id_L,
        "token before": found.previous_L,
        "same sequence": found.sequence_L,
        "topic": found.topic_L,
        "position": found.position_L,
    }
    figure = go.Figure()
    for name, share_L in measured.items():
        if share_L is not None and not np.isnan(share_L).all():
            figure.add_scatter(
                x=_layer_names(profile),
                y=share_L,
                name=name,
                mode="lines+markers",
                line={"color": _DEPENDENCE_COLOURS[name]},
                hovertemplate=f"layer %{{x}}: {name} explains %{{y:.1%}}<extra></extra>",
            )
    figure.update_layout(xaxis_title="MoE layer", yaxis_title="share explained", yaxis_tickformat=".0%")
    return finished(figure, height=340)


def windows(profile: TraceProfile) -> go.Figure:
    """How far the load of each stretch of the trace is from that of every other."""
    names = [str(index) for index in range(len(profile.drift.windows.names))]
    return _distances(profile.drift.windows, names, f"window of {profile.drift.window_tokens:,} tokens")


def topics(profile: TraceProfile) -> go.Figure:
    """How far the load of each topic is from that of every other."""
    return _distances(profile.drift.topics, list(profile.drift.topics.names), "")


def stability(profile: TraceProfile) -> go.Figure:
    """Balance, on sequences never seen, of a plan packed on the first n planning tokens."""
    found = profile.stability
    if found is None:
        return finished(go.Figure(), height=120)
    figure = go.Figure(
        go.Scatter(
            x=found.tokens_N,
            y=found.balance_N,
            mode="lines+markers",
            line={"color": PLAN_COLOURS[2]},
            hovertemplate="planned on %{x:,.0f} tokens: balance %{y:.3f}<extra></extra>",
        )
    )
    figure.add_hline(y=found.balance_N[-1] * (1 - found.within), line_dash="dot", line_color="#5b6675")
    if found.stable_tokens is not None:
        figure.add_vline(x=found.stable_tokens, line_dash="dot", line_color="#0b7a4b")
    figure.update_layout(xaxis_title="tokens planned on", yaxis_title="balance on unseen sequences")
    figure.update_xaxes(type="log")
    return finished(figure, height=320)


def empty_choices(profile: TraceProfile) -> go.Figure:
    """Part of the K choices that is empty, by place in the sequence: capacity that fills up drops late tokens."""
    found = profile.positions
    places = [
        str(first) if first == last else f"{first}–{last}"
        for first, last in zip(found.first_P, found.last_P, strict=True)
    ]
    figure = go.Figure(
        go.Bar(
            x=places,
            y=found.empty_P,
            customdata=found.tokens_P,
            marker_color=PLAN_COLOURS[1],
            hovertemplate="position %{x}: %{y:.1%} empty, %{customdata:,} tokens<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title="position in the sequence", yaxis_title="choices empty", yaxis_tickformat=".0%")
    figure.update_xaxes(type="category")
    return finished(figure, height=300)


def placements(profile: TraceProfile, *, plan: str | None = None) -> go.Figure:
    """Pooled balance by layer of experts in order, of experts packed by load, and of the plan that was counted."""
    load_LE, ranks = profile.stats.load_LE, min(profile.n_ranks, profile.meta.experts)
    figure = go.Figure()
    for name, rank_LE, colour in (
        ("experts in order", contiguous_ranks_LE(profile.meta, ranks), "#7a8594"),
        ("packed by load", packed_ranks_LE(load_LE, ranks), PLAN_COLOURS[2]),
    ):
        balance_L = []
        for load_E, rank_E in zip(load_LE, rank_LE, strict=True):
            load_G = np.bincount(rank_E, weights=load_E, minlength=ranks)
            balance_L.append(load_G.mean() / load_G.max() if load_G.max() else math.nan)
        figure.add_bar(x=_layer_names(profile), y=balance_L, name=name, marker_color=colour)
    if plan is not None:
        shown_L = profile.stats.balance_pooled_L
        figure.add_bar(x=_layer_names(profile), y=shown_L, name=plan, marker_color=PLAN_COLOURS[0])
    figure.update_layout(xaxis_title="MoE layer", yaxis_title=f"balance, {ranks} ranks", yaxis_range=[0, 1.02])
    return finished(figure, height=300)


def _distances(found: LoadDistances, names: list[str], title: str) -> go.Figure:
    figure = go.Figure(
        go.Heatmap(
            z=np.round(found.distance_CC, 4),
            x=names,
            y=names,
            colorscale="Blues",
            zmin=0,
            colorbar={"title": {"text": "choices that move", "side": "right"}, "thickness": 12, "tickformat": ".0%"},
            customdata=np.stack([found.noise_CC, found.balance_CC], axis=-1),
            hovertemplate="%{y} and %{x}: %{z:.1%} (chance %{customdata[0]:.1%})"
            "<br>balance of a plan made on %{y}: %{customdata[1]:.3f}<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title=title, yaxis_autorange="reversed")
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return finished(figure, height=max(260, 120 + 24 * len(names)))


def _random_fan_out(profile: TraceProfile) -> Floats | None:
    """Fan-out of K different experts drawn evenly when ranks hold equally many.

    None when they do not.

    Ranks hit by K of E experts dealt without replacement: occupancy by inclusion and exclusion.
    """
    experts, ranks, choices = profile.meta.experts, profile.n_ranks, profile.meta.choices
    if experts % ranks or (profile.stats.load_LE.sum() < profile.stats.tokens * profile.meta.layers * choices):
        return None
    own, share_F = experts // ranks, np.zeros(choices + 1)
    ways = math.comb(experts, choices)
    for hit in range(1, min(ranks, choices) + 1):
        covering = sum(
            (-1) ** miss * math.comb(hit, miss) * math.comb((hit - miss) * own, choices) for miss in range(hit)
        )
        share_F[hit] = math.comb(ranks, hit) * covering / ways
    return share_F


def _strongest(values_L: Floats) -> int:
    return 0 if np.isnan(values_L).all() else int(np.nanargmax(values_L))


def _layer_names(profile: TraceProfile) -> list[str]:
    ids = profile.meta.layer_ids or range(profile.meta.layers)
    return [str(layer) for layer in ids]
