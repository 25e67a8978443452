"""Checks of counts: too few choices, layers, empty choices, expert ids, variety.

Axes: T token, L MoE layer, E expert, K choice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecast.traces.meta import TraceMeta
from moecast.traces.statistics.findings import SHORT, Finding, TraceFacts, layer_list, percent

LEAST_CHOICES = 100
LEAST_SEQUENCES = 20


def few_choices(facts: TraceFacts) -> Iterator[Finding]:
    """Experts whose load is not known well, or that nobody chooses."""
    layer_X = np.flatnonzero(facts.load_LE.any(axis=1))  # the others are `layers`' to tell
    if not len(layer_X):
        return
    load_LE = facts.load_LE[layer_X]
    dead_LE = load_LE == 0
    expected = float(load_LE.sum(axis=1).mean()) / facts.meta.experts
    if dead_LE.any() and expected >= LEAST_CHOICES:
        layer, expert = (int(i) for i in np.argwhere(dead_LE)[0])
        yield Finding(
            code="dead-experts",
            severity="note",
            message=f"experts: {percent(int(dead_LE.sum()), dead_LE.size)} of the experts are "
            f"never chosen (the first is {expert} at layer {layer_X[layer]}), where "
            f"{expected:,.0f} choices are the mean: dead in training, or ids that the model does "
            "not have; check E against the model",
        )
    few_LE = (load_LE < LEAST_CHOICES) & ~(dead_LE if expected >= LEAST_CHOICES else np.zeros_like(dead_LE))
    if few_LE.any():
        least = int(load_LE[few_LE].min())
        worst = f"±{196 / least**0.5:.0f} %" if least else "not at all"
        many = int(few_LE.sum()) > few_LE.size // 20
        yield Finding(
            code="few-choices",
            severity="warning" if many else "note",
            message=f"experts: {percent(int(few_LE.sum()), few_LE.size)} of the experts have fewer "
            f"than {LEAST_CHOICES} choices, so their load is known to ±20 % or worse (the least, "
            f"{least}: {worst}, at 95 % confidence); capture more tokens before planning replicas",
        )


def layers(facts: TraceFacts) -> Iterator[Finding]:
    """Layers that are empty, constant or recorded twice."""
    used_L = (facts.load_LE > 0).sum(axis=1)
    silent = np.flatnonzero(used_L == 0)
    constant = np.flatnonzero((used_L <= facts.meta.choices) & (used_L > 0)) if facts.rows.tokens > 1 else silent[:0]
    if len(silent):
        yield Finding(
            code="empty-layer",
            severity="warning",
            message=f"experts: {layer_list(silent)} without any choice: a dense layer recorded as "
            "an MoE layer, or nothing recorded; leave it out",
        )
    if len(constant) and facts.meta.choices < facts.meta.experts:
        yield Finding(
            code="constant-layer",
            severity="warning",
            message=f"experts: at {layer_list(constant)} only {int(used_L[constant[0]])} experts "
            "are ever chosen, the same by all tokens: a router that was not loaded, or a layer "
            "that is none; check the capture",
        )
    same = [
        layer
        for layer in range(facts.meta.layers - 1)
        if facts.sample.tokens >= SHORT
        and used_L[layer] > facts.meta.choices
        and (facts.sample.experts_TLK[:, layer] == facts.sample.experts_TLK[:, layer + 1]).all(axis=1).mean() > 0.99
    ]
    if same:
        yield Finding(
            code="equal-layers",
            severity="warning",
            message=f"experts: {layer_list(np.array(same))} and the one after make the same "
            "choices: one layer was recorded twice; check how the capture numbers layers",
        )


def empty_choices(facts: TraceFacts) -> Iterator[Finding]:
    """Choices that are not made."""
    slots = facts.rows.tokens * int(facts.load_LE.any(axis=1).sum()) * facts.meta.choices
    empty = slots - int(facts.load_LE.sum())
    if 2 * empty > slots:
        yield Finding(
            code="mostly-empty",
            severity="warning",
            message=f"choices: {percent(empty, slots)} of the K = {facts.meta.choices} choices are "
            "empty: K is larger than tokens use, or most were dropped; statistics per token count "
            "the choices that were made",
        )
    elif empty:
        yield Finding(
            code="empty-choices",
            severity="note",
            message=f"choices: {percent(empty, slots)} are empty (dropped tokens, null experts or "
            "a varying number of choices); see them by position before you plan with the mean",
        )


def expert_ids(facts: TraceFacts) -> Iterator[Finding]:
    """Expert ids that do not fit E or the model, or whose order is not the router's."""
    meta = facts.meta
    used_E = np.flatnonzero(facts.load_LE.sum(axis=0))
    highest = int(used_E.max(initial=-1))
    if 0 <= highest < meta.experts // 2:
        yield Finding(
            code="unused-ids",
            severity="warning",
            message=f"experts: no id above {highest} is used though E = {meta.experts}: E is "
            "wrong, or ids are local to a rank; state E when importing",
        )
    declared = _declared_experts(meta)
    if declared is not None and declared != meta.experts:
        more = "ids may be slots (physical experts) instead of experts" if meta.experts > declared else "E is too small"
        yield Finding(
            code="experts-differ",
            severity="warning",
            message=f"config: the model has {declared} routed experts, the trace E = "
            f"{meta.experts}: {more}; map slots to experts before planning",
        )
    chosen_TK = facts.sample.experts_TLK[:, 0]
    if meta.choices > 2 and len(chosen_TK) >= SHORT and np.all(chosen_TK[:, 1:] > chosen_TK[:, :-1], axis=1).all():
        yield Finding(
            code="sorted-choices",
            severity="note",
            message="experts: choices stand in rising order of id, not of weight: what takes the "
            "first choice as the best (dispatch mode stay) means nothing here",
        )


def _declared_experts(meta: TraceMeta) -> int | None:
    for name in ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"):
        value = (meta.config or {}).get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def variety(facts: TraceFacts) -> Iterator[Finding]:
    """Too few sequences or topics to stand for other traffic."""
    sequences = len(np.unique(facts.sample.sequence_T))
    if facts.sample.whole and sequences < LEAST_SEQUENCES:
        yield Finding(
            code="few-sequences",
            severity="warning",
            message=f"sequence: {sequences} in all: tokens of one text route alike, so every "
            f"statistic rests on {sequences} samples; capture at least {LEAST_SEQUENCES}",
        )
    if not facts.topics:
        yield Finding(
            code="no-topics",
            severity="note",
            message="topic: none recorded, so nothing says how loads would move with the kind of "
            "text; label the prompts when capturing",
        )
    elif len(facts.topics) == 1:
        yield Finding(
            code="one-topic",
            severity="warning",
            message=f"topic: all tokens are {facts.topics[0]!r}: a plan made on one topic can lose "
            "on another; capture a mix",
        )
    elif int(facts.tokens_C.max()) > 0.9 * int(facts.tokens_C.sum()):
        name = facts.topics[int(facts.tokens_C.argmax())]
        yield Finding(
            code="one-topic",
            severity="note",
            message=f"topic: {percent(int(facts.tokens_C.max()), int(facts.tokens_C.sum()))} of "
            f"the tokens are {name!r}: pooled loads are that topic's; weight topics as your "
            "traffic does",
        )
