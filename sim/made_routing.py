"""Routing of a model's own shape that nobody recorded: even, skewed by a law, or by the counts of a load table.

Every token chooses K different experts of each layer, in groups where the model's router has them.
The chance that a token chooses an expert is K times the expert's share of the load, exactly: groups
and experts are drawn by systematic sampling in a random order (Madow, 1949), which keeps such
chances whatever they are. What cannot be kept goes to other experts, and the trace says how much
(`moved_load`): no token chooses an expert twice, or more in one of its groups than in another.
Layers are independent of each other and tokens of each other: there is no affinity and no topic in
it.

Axes: T token, L MoE layer, E expert, K choice, C group of experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner, next_uint32
from moecast.errors import MoecastError
from moecast.traces import PHASES, RoutingTrace, TraceMeta

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.traces import LoadTable

Float = npt.NDArray[np.float64]

LAWS = ("uniform", "zipf", "power-law", "trace", "gamma")
WITH_NUMBER = ("zipf", "power-law", "gamma")
_LAW_DRAWS = {"uniform": 0, "zipf": 1, "power-law": 2, "trace": 3, "load": 4, "gamma": 5}
"""Each kind of routing draws numbers of its own from a seed."""
_LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingLaw:
    """How popular the experts of a layer are.

    Parameters
    ----------
    name
        ``uniform``: all alike. ``zipf``: the r-th most popular in proportion to r^-exponent.
        ``power-law``: the counts of a layer's experts are drawn from a power law. ``trace``: like
        those of a recorded trace. ``gamma``: shares are drawn from a gamma distribution, as
        experts' loads within one kind of text lie.
    number
        Exponent of zipf and power-law; of gamma the coefficient of variation of the shares: 0.8
        within single kinds of text of DeepSeek-V2-Lite's recorded prompts (0.61 to 1.17 by kind,
        mean of 26 layers; 0.51 over all of them).
    """

    name: str
    number: float | None = None

    def __post_init__(self) -> None:
        if self.name not in LAWS:
            raise MoecastError("uniform, zipf:S, power-law:A, gamma:V or trace", field="--routing", value=self.name)
        wants = self.name in WITH_NUMBER
        if wants != (self.number is not None):
            rule = f"give a number, as in {self.name}:1.2" if wants else "takes no number"
            raise MoecastError(rule, field="--routing", value=self.name)
        if self.number is not None and not (math.isfinite(self.number) and 0 <= self.number <= 10):
            raise MoecastError("its number is from 0 to 10", field="--routing", value=str(self))

    def __str__(self) -> str:
        """The law as `parse_law` reads it."""
        return self.name if self.number is None else f"{self.name}:{self.number:g}"

    def share_LE(self, layers: int, experts: int, tokens: int, choices: int, rng: np.random.Generator) -> Float:
        """Draw each layer's shares of the load; which expert is popular differs by layer.

        The power law is AIConfigurator's: counts x = ((b^(1-A) - a^(1-A)) u + a^(1-A))^(1 / (1-A)),
        u uniform, with a = 1 and b = 0.8 tokens (those of a step), or from 0.01 to 2 where there
        are no more choices than experts. It then puts the heaviest rank first; here experts stay
        where they fall.
        """
        if self.name == "zipf":
            assert self.number is not None
            share_E = np.arange(1, experts + 1, dtype=np.float64) ** -self.number
            return np.stack([rng.permutation(share_E / share_E.sum()) for _ in range(layers)])
        if self.name == "power-law":
            assert self.number is not None
            low, high = (1.0, 0.8 * tokens) if tokens * choices > experts else (0.01, 2.0)
            count_LE = _power_law(rng.random((layers, experts)), self.number, low, max(high, 2 * low))
            return np.asarray(count_LE / count_LE.sum(axis=1, keepdims=True))
        if self.name == "gamma" and self.number:
            # A share may be so small that it rounds to 0; all of a layer's at once only with a
            # number far beyond use.
            share_LE = rng.gamma(self.number**-2, size=(layers, experts)) + np.finfo(np.float64).tiny
            return np.asarray(share_LE / share_LE.sum(axis=1, keepdims=True))
        return np.full((layers, experts), 1 / experts)


def parse_law(text: str) -> RoutingLaw:
    """Read ``uniform``, ``zipf:1``, ``power-law:1.2``, ``gamma:0.8`` or ``trace``.

    Raises
    ------
    MoecastError
        None of these.
    """
    name, colon, number = text.strip().partition(":")
    try:
        return RoutingLaw(name=name, number=float(number) if colon else None)
    except ValueError as error:
        rule = "a number stands behind the colon, as in zipf:1.2"
        raise MoecastError(rule, field="--routing", value=text) from error


def routing_by_law(
    law: RoutingLaw,
    model: ModelShape,
    *,
    tokens: int,
    sequence: int,
    phase: str,
    position: int,
    seed: int,
    step_tokens: int | None = None,
) -> RoutingTrace:
    """Make tokens that route by a law.

    Parameters
    ----------
    tokens, sequence
        How many tokens, in sequences of how many.
    phase, position
        Of the rows; where each sequence begins.
    step_tokens
        How many of them one step holds, which is how far the power law's counts reach; None: all.
    """
    rng = np.random.default_rng([seed, _LAW_DRAWS[law.name]])
    share_LE = law.share_LE(model.layers, model.experts, step_tokens or tokens, model.choices, rng)
    notes = f"Made, not recorded: {law} routing, layers and tokens independent of each other."
    return _made(f"{law} routing", notes, share_LE, model, tokens, sequence, phase, position, rng)


def routing_by_load(
    table: LoadTable, model: ModelShape, *, tokens: int, sequence: int, phase: str, position: int, seed: int
) -> RoutingTrace:
    """Make tokens whose choices have the shares of a load table, each layer independent of the others.

    Raises
    ------
    MoecastError
        The table's L or E is not the model's, or a layer has no choice in it.
    """
    for field, ours, theirs in (
        ("layers", model.layers, table.meta.layers),
        ("experts", model.experts, table.meta.experts),
    ):
        if ours != theirs:
            rule = f"the model {model.name} has {ours}"
            raise MoecastError(rule, field=f"load table: {field}", value=theirs)
    total_L = table.load_LE.astype(np.float64).sum(axis=1)
    if not (total_L > 0).all():
        layer = int(np.flatnonzero(total_L <= 0)[0])
        rule = "has no choice in it, so that nothing can be drawn"
        raise MoecastError(rule, field=f"load table: layer {layer}")
    notes = "Made from a load table: each layer is drawn by its counts, independent of the others."
    rng = np.random.default_rng([seed, _LAW_DRAWS["load"]])
    share_LE = table.load_LE / total_L[:, None]
    name = f"the load of {table.meta.model or 'a table'}"
    return _made(name, notes, share_LE, model, tokens, sequence, phase, position, rng)


def chances_LE(share_LE: Float, choices: int) -> Float:
    """Chance of each expert to be among a token's K: K times its share, at most 1; the others take what is cut off."""
    chance_LE = np.asarray(share_LE, np.float64) * choices
    for _ in range(share_LE.shape[1]):
        over_LE = chance_LE > 1 + 1e-12
        if not over_LE.any():
            break
        chance_LE = np.where(over_LE, 1.0, chance_LE)
        free_LE = chance_LE < 1
        room_L = np.maximum(choices - (~free_LE).sum(axis=1), 0)
        rest_L = np.where(free_LE, chance_LE, 0).sum(axis=1)
        # A load on fewer than K experts leaves no share for the rest: they share evenly.
        even_LE = free_LE / np.maximum(free_LE.sum(axis=1, keepdims=True), 1)
        scaled_LE = chance_LE * (room_L / np.maximum(rest_L, 1e-300))[:, None]
        chance_LE = np.where(free_LE, np.where((rest_L > 0)[:, None], scaled_LE, even_LE * room_L[:, None]), chance_LE)
    return chance_LE


def moved_load(share_LE: Float, chance_LE: Float, model: ModelShape) -> float:
    """Part of the load that goes to other experts than it should, mean of the layers: chances cut at 1, even groups."""
    kept_LE, groups, chosen = chance_LE, model.expert_groups, model.groups_per_token
    if 1 < groups != chosen:
        kept_LE = np.stack([_kept_in_groups(chance_E, model.choices, groups, chosen) for chance_E in chance_LE])
    return float(np.abs(kept_LE / model.choices - share_LE).sum(axis=1).mean() / 2)


@entry
def _kept_in_groups(chance_E, choices, groups, groups_per_token):  # type: ignore[no-untyped-def]
    """The chances with which `_draw` chooses; those of two numbers of choices in a group where they do not divide."""
    inside = len(chance_E) // groups
    chance_C = np.empty(groups)
    _of_groups(chance_E, choices, groups_per_token, chance_C)
    kept_E, part_E = np.zeros(len(chance_E)), np.empty(inside)
    for c in range(groups):
        for more in range(2):
            wanted = choices // groups_per_token + more
            rest = (choices % groups_per_token) / groups_per_token
            _of_a_group(chance_E, c * inside, wanted, part_E)
            for i in range(inside):
                kept_E[c * inside + i] += chance_C[c] * part_E[i] * (rest if more else 1 - rest)
    return kept_E


def _power_law(u: Float, exponent: float, low: float, high: float) -> Float:
    power = 1 - exponent
    if abs(power) < 1e-9:
        return np.asarray(low * (high / low) ** u)
    return np.asarray(((high**power - low**power) * u + low**power) ** (1 / power))


def _made(
    name: str,
    notes: str,
    share_LE: Float,
    model: ModelShape,
    tokens: int,
    sequence: int,
    phase: str,
    position: int,
    rng: np.random.Generator,
) -> RoutingTrace:
    chance_LE = chances_LE(share_LE, model.choices)
    moved = moved_load(share_LE, chance_LE, model)
    experts_TLK = _draw(chance_LE, tokens, model.choices, model.expert_groups, model.groups_per_token, rng)
    number_T = np.arange(tokens)
    source: dict[str, Any] = {"made": {"routing": name, "of": model.name, "moved_load": round(moved, 6)}}
    return RoutingTrace(
        meta=TraceMeta(
            model=name,
            layers=model.layers,
            experts=model.experts,
            choices=model.choices,
            layer_ids=model.moe_layer_ids,
            source=source,
            notes=notes,
        ),
        experts_TLK=experts_TLK,
        sequence_T=(number_T // sequence).astype(np.uint32),
        position_T=(position + number_T % sequence).astype(np.uint32),
        phase_T=np.full(tokens, PHASES.index(phase), np.uint8),
        topic_T=np.full(tokens, -1, np.int16),
    )


@inner
def _of_groups(chance_E, choices, groups_per_token, chance_C):  # type: ignore[no-untyped-def]
    """A group's chance: its experts' together, scaled to the groups of a token; each gives an equal part."""
    groups = len(chance_C)
    inside = len(chance_E) // groups
    for c in range(groups):
        # A group gives at most one of the token's groups, however popular its experts are together.
        chance_C[c] = min(1.0, chance_E[c * inside : (c + 1) * inside].sum() * groups_per_token / choices)
    scale = groups_per_token / chance_C.sum()
    for c in range(groups):
        chance_C[c] = min(1.0, chance_C[c] * scale)


@inner
def _of_a_group(chance_E, first, wanted, part_E):  # type: ignore[no-untyped-def]
    """Chances of a chosen group's experts to be among its `wanted`."""
    inside = len(part_E)
    total = chance_E[first : first + inside].sum()
    for i in range(inside):
        # A chosen group must give its choices, also where nobody asked for its experts: then all
        # alike.
        part_E[i] = chance_E[first + i] / total * wanted if total > 0 else wanted / inside
    _cap(part_E, wanted)


@entry
def _draw(chance_LE, tokens, choices, groups, groups_per_token, rng):  # type: ignore[no-untyped-def]
    """Choose for every token and layer; chances sum to K in each layer."""
    layers, experts = chance_LE.shape
    made_TLK = np.empty((tokens, layers, choices), np.uint16)
    order_E, order_C = np.arange(experts), np.arange(groups)
    inside = experts // groups
    chance_C, chosen_C = np.empty(groups), np.empty(groups, np.int64)
    # By whether a group gives one more than the least: what every token of a layer chooses by is
    # worked out once.
    part_MCI = np.empty((2, groups, inside))
    chosen_K = np.empty(choices, np.int64)
    order_I = np.arange(inside)
    for layer in range(layers):
        # Limited to all groups is not limited.
        free = groups == 1 or groups_per_token == groups
        if not free:
            _of_groups(chance_LE[layer], choices, groups_per_token, chance_C)
            for c in range(groups):
                for more in range(2):
                    _of_a_group(chance_LE[layer], c * inside, choices // groups_per_token + more, part_MCI[more, c])
        for token in range(tokens):
            if free:
                _systematic(chance_LE[layer], order_E, choices, chosen_K, rng)
                for k in range(choices):
                    made_TLK[token, layer, k] = chosen_K[k]
                continue
            _systematic(chance_C, order_C, groups_per_token, chosen_C, rng)
            k = 0
            for g in range(groups_per_token):
                more = 1 if g < choices % groups_per_token else 0
                c = chosen_C[g]
                _systematic(part_MCI[more, c], order_I, choices // groups_per_token + more, chosen_K, rng)
                for i in range(choices // groups_per_token + more):
                    made_TLK[token, layer, k] = c * inside + chosen_K[i]
                    k += 1
    return made_TLK


@inner
def _cap(chance_E, wanted):  # type: ignore[no-untyped-def]
    """No chance above 1; what is cut off goes to the others in proportion, or evenly where they have none."""
    # What is cut off may lift others above 1: one more is full each time, so as many rounds as
    # experts.
    for _ in range(len(chance_E)):
        full, rest, free = 0, 0.0, 0
        over = False
        for i in range(len(chance_E)):
            if chance_E[i] > 1:
                over = True
            if chance_E[i] >= 1:
                full += 1
            else:
                rest += chance_E[i]
                free += 1
        if not over:
            return
        for i in range(len(chance_E)):
            if chance_E[i] >= 1:
                chance_E[i] = 1.0
            elif rest > 0:
                chance_E[i] *= (wanted - full) / rest
            else:
                chance_E[i] = (wanted - full) / free


@entry
def _below(rng, end):  # type: ignore[no-untyped-def]
    """What `rng.integers(0, end)` gives, without the array of one that it makes at each call (Lemire, 2019)."""
    wide = np.uint64(next_uint32(rng.bit_generator)) * np.uint64(end)
    if wide & _LOW < np.uint64(end):
        least = (_LOW - np.uint64(end - 1)) % np.uint64(end)
        while wide & _LOW < least:
            wide = np.uint64(next_uint32(rng.bit_generator)) * np.uint64(end)
    return np.int64(wide >> np.uint64(32))


@inner
def _systematic(chance_E, order_E, wanted, chosen_K, rng):  # type: ignore[no-untyped-def]
    """Choose exactly `wanted`, each with its chance: laid end to end in a random order, those hit by u, u + 1, … ."""
    n = len(order_E)
    for i in range(n - 1, 0, -1):  # a new random order for each token, or neighbours would never meet
        j = _below(rng, i + 1)
        order_E[i], order_E[j] = order_E[j], order_E[i]
    mark = rng.random()
    reached, found = 0.0, 0
    for i in range(n):
        reached += chance_E[order_E[i]]
        if found < wanted and reached > mark:
            chosen_K[found] = order_E[i]
            found += 1
            mark += 1.0
    i = n - 1
    while found < wanted:  # rounding left the last mark beyond the end
        taken = False
        for k in range(found):
            taken = taken or chosen_K[k] == order_E[i]
        if not taken:
            chosen_K[found] = order_E[i]
            found += 1
        i -= 1
