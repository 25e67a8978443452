"""The routing of published measurements: what benchmarks of kernels draw, and exactly even routing.

Axes: T token, L MoE layer, E expert, K choice, C group of experts.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moecast.traces import RoutingTrace, TraceMeta, concatenate, fit_trace, read_trace, shipped_trace_path, synthesise

Float32 = npt.NDArray[np.float32]


@lru_cache(maxsize=2)  # dispatch and combine, forecast and unit, ask for the same
def uniform_trace(
    *,
    tokens: int,
    experts: int,
    choices: int,
    layers: int = 1,
    groups: int = 1,
    groups_per_token: int = 1,
    best: int = 1,
    seed: int = 0,
) -> RoutingTrace:
    """Draw K different experts for every token and layer, all alike, inside each token's best groups.

    Parameters
    ----------
    groups, groups_per_token
        Experts stand in so many equal groups, and a token's choices in so many of them.
    best
        A group ranks by the sum of its `best` highest scores: 1 in DeepEP's tests, 2 in
        DeepSeek-V3's router.
    """
    rng = np.random.default_rng(seed)
    experts_TLK = np.empty((tokens, layers, choices), np.uint16)
    for layer in range(layers):
        score_TE = rng.random((tokens, experts), np.float32)
        if groups_per_token < groups:
            score_TE = _inside_best_groups(score_TE, groups, groups_per_token, best)
        experts_TLK[:, layer] = np.argpartition(-score_TE, choices, axis=1)[:, :choices]
    return _trace("uniform", experts_TLK, experts)


def even_trace(
    *,
    tokens: int,
    experts: int,
    choices: int,
    layers: int = 1,
    groups: int = 1,
    groups_per_token: int = 1,
    seed: int = 0,
) -> RoutingTrace:
    """Deal experts like cards, so that every run of E / K tokens (from a multiple on) visits every expert once.

    Groups are dealt too: `groups / groups_per_token` tokens share all groups, K /
    `groups_per_token` experts from each.

    Raises
    ------
    ValueError
        The sizes do not divide.
    """
    turns, each = groups // groups_per_token, choices // groups_per_token
    in_group = experts // groups
    if groups % groups_per_token or choices % groups_per_token or experts % groups or in_group % each:
        raise ValueError("groups, choices and experts must divide evenly to be dealt")
    rng = np.random.default_rng(seed)
    # of each group: whole decks
    visits = -(-tokens // (turns * (in_group // each))) * (in_group // each)
    experts_TLK = np.empty((visits * turns, layers, choices), np.uint16)
    for layer in range(layers):
        group_VC = rng.permuted(np.tile(np.arange(groups), (visits, 1)), axis=1)
        decks = rng.permuted(np.tile(np.arange(in_group), (groups * visits * each // in_group, 1)), axis=1)
        hand_CVK = decks.reshape(groups, visits, each)
        chosen = group_VC[..., None] * in_group + hand_CVK[group_VC, np.arange(visits)[:, None]]
        experts_TLK[:, layer] = chosen.reshape(visits * turns, choices)
    return _trace("even", experts_TLK[:tokens], experts)


def forced_trace(
    *, experts: int, choices: int, groups: int = 1, groups_per_token: int = 1, drawn: int = 64, seed: int = 0
) -> RoutingTrace:
    """What a router sends whose scores are drawn at random, as recipes do that force balance.

    Loads are exactly even: of each drawn token all rotations are taken, of its groups and of the
    experts inside them. A token's experts are not spread evenly: some share a rank, and some
    domains have none.

    Parameters
    ----------
    groups, groups_per_token
        As of `uniform_trace`; groups rank by their K / `groups_per_token` best scores, as
        Megatron-Core's do.
    drawn
        Tokens drawn; there are E times as many in the trace.
    """
    best = choices // groups_per_token
    first = uniform_trace(
        tokens=drawn,
        experts=experts,
        choices=choices,
        groups=groups,
        groups_per_token=groups_per_token,
        best=best,
        seed=seed,
    )
    inside = experts // groups
    group_TK, place_TK = np.divmod(first.experts_TLK[:, 0].astype(np.int64), inside)
    turn_E, step_E = np.divmod(np.arange(experts), inside)
    group_ETK = (group_TK[None] + turn_E[:, None, None]) % groups
    place_ETK = (place_TK[None] + step_E[:, None, None]) % inside
    chosen_TK = (group_ETK * inside + place_ETK).reshape(-1, choices)
    order_T = np.random.default_rng(seed).permutation(len(chosen_TK))
    return _trace("forced", chosen_TK[order_T, None, :].astype(np.uint16), experts)


@lru_cache(maxsize=1)
def skewed_trace(*, experts: int, choices: int, layers: int, tokens: int = 4096) -> RoutingTrace:
    """Make routing whose experts are as unlike each other as those of the shipped trace, at another shape."""
    like = fit_trace(read_trace(shipped_trace_path()), phase="prefill")
    return concatenate(list(synthesise(like, shape=f"{layers}x{experts}x{choices}", tokens=tokens)))


def _inside_best_groups(score_TE: Float32, groups: int, groups_per_token: int, best: int) -> Float32:
    """Put the scores outside each token's best groups below all others."""
    score_TCE = score_TE.reshape(len(score_TE), groups, -1)
    group_TC = np.sort(score_TCE, axis=2)[..., -best:].sum(axis=2)
    least_T = np.sort(group_TC, axis=1)[:, -groups_per_token]
    kept: Float32 = np.where((group_TC >= least_T[:, None])[..., None], score_TCE, np.float32(-1)).reshape(
        score_TE.shape
    )
    return kept


def _trace(name: str, experts_TLK: npt.NDArray[np.uint16], experts: int) -> RoutingTrace:
    tokens, layers, choices = experts_TLK.shape
    return RoutingTrace(
        meta=TraceMeta(model=name, layers=layers, experts=experts, choices=choices),
        experts_TLK=experts_TLK,
        sequence_T=np.zeros(tokens, np.uint32),
        position_T=np.arange(tokens, dtype=np.uint32),
        phase_T=np.ones(tokens, np.uint8),
        topic_T=np.full(tokens, -1, np.int16),
    )
