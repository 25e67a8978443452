"""What a choice depends on: the token's id, the token before it, the rest of its text, its topic, its position.

Axes: T token, L MoE layer, E expert, K choice, R group of tokens.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from moecast.traces.statistics._dependence import group_overlap
from moecast.traces.statistics.sample import SAMPLE_CHOICES, Source, TokenSample, sample_of
from moecast.traces.statistics.summary import Fractions

Ints = npt.NDArray[np.int64]

# n · log2 n for the counts that most cells have
_LOG_N = np.arange(1 << 12) * np.log2(np.maximum(np.arange(1 << 12), 1))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dependence:
    """How much of the choices the token id explains, and how much its context adds (OpenMoE, arXiv 2402.01739).

    OpenMoE calls routing that follows the id "context-independent specialisation". The share that a
    group (all tokens of one id, say) explains is that of the variance of the 0/1 vector of chosen
    experts: with s the mean number of choices that two different tokens of one group share, a the
    same for two tokens of any kind, and k the choices of a token, it is (s − a) ÷ (k − a) (Goodman
    and Kruskal's τ, 1954). Two tokens that differ are compared, never a token with itself, so that
    small groups do not look alike by themselves: no correction is needed, and random routing gives
    0 ± noise. All are [L], nan where nothing can be compared.

    Parameters
    ----------
    chance_L
        a ÷ k: part of its choices that a token shares with any other.
    token_id_L
        Share explained by the id; None without ids, like the next two.
    previous_L
        Share that the id of the token before adds, among tokens whose pair of ids comes again.
    sequence_L
        Share that standing in the same sequence adds, among tokens whose id comes again in it: the
        wider context.
    position_L
        Share explained by the position alone.
    topic_L
        Share explained by the topic alone; None without topics.
    repeated, repeated_pairs
        Part of the tokens whose id comes again, and whose pair of ids does: those that the shares
        speak of.
    entropy_L
        Bits of one choice, given the layer only.
    information_L
        Bits of it that the id tells, less what ids dealt anew over the tokens seem to tell.
    information_share_L
        The same over the most there is to tell, likewise corrected (adjusted mutual information;
        Vinh, Epps and Bailey, 2010): 1 when the id settles the set of experts.
    tokens
        Tokens looked at: whole pieces of sequences, at most a sample.
    """

    chance_L: Fractions
    token_id_L: Fractions | None
    previous_L: Fractions | None
    sequence_L: Fractions | None
    position_L: Fractions
    topic_L: Fractions | None
    repeated: float | None
    repeated_pairs: float | None
    entropy_L: Fractions
    information_L: Fractions | None
    information_share_L: Fractions | None
    tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Groups:
    """Tokens in groups: `order_T[start_R1[r] : start_R1[r + 1]]` are those of group r."""

    order_T: Ints
    start_R1: Ints

    @classmethod
    def by(cls, *keys: npt.NDArray[np.generic]) -> _Groups:
        """Tokens that agree in all keys; the first key counts most in the order of groups."""
        order_T = np.lexsort(keys[::-1]).astype(np.int64)
        breaks_T = np.zeros(len(order_T), bool)
        for key in keys:
            sorted_T = key[order_T]
            breaks_T[1:] |= sorted_T[1:] != sorted_T[:-1]
        starts = np.flatnonzero(breaks_T)
        return cls(order_T, np.concatenate([[0], starts, [len(order_T)]]).astype(np.int64))

    def dealt(self, rng: np.random.Generator) -> _Groups:
        """Groups of the same sizes of tokens drawn at random."""
        return _Groups(rng.permutation(self.order_T), self.start_R1)


def dependence(source: Source | TokenSample, *, most_choices: int = SAMPLE_CHOICES, seed: int = 0) -> Dependence:
    """Measure what choices depend on, on a sample of at most `most_choices` choices.

    Raises
    ------
    ValueError
        No batches.
    """
    sample = source if isinstance(source, TokenSample) else sample_of(source, most_choices=most_choices, seed=seed)
    layers = sample.meta.layers
    found = {name: np.full(layers, math.nan) for name in _MEASURES}
    groups = _groups_of(sample, np.random.default_rng(seed))
    for layer in range(layers if sample.tokens > 1 else 0):
        chosen_TK = np.ascontiguousarray(sample.experts_TLK[:, layer])
        for name, value in _layer(chosen_TK, sample.meta.experts, groups).items():
            found[name][layer] = value
    known: dict[str, Fractions | None] = dict(found)
    if sample.token_id_T is None:
        known |= dict.fromkeys(("token_id_L", "previous_L", "sequence_L", "information_L", "information_share_L"))
    if sample.topic_T is None:
        known["topic_L"] = None
    return Dependence(
        **known,  # type: ignore[arg-type]
        repeated=_repeated(groups.get("token_id")),
        repeated_pairs=_repeated(groups.get("previous")),
        tokens=sample.tokens,
    )


_MEASURES = (
    "chance_L",
    "token_id_L",
    "previous_L",
    "sequence_L",
    "position_L",
    "topic_L",
    "entropy_L",
    "information_L",
    "information_share_L",
)


def _groups_of(sample: TokenSample, rng: np.random.Generator) -> dict[str, _Groups]:
    groups = {"any": _Groups.by(np.zeros(sample.tokens, np.int8)), "position": _Groups.by(sample.position_T)}
    if sample.topic_T is not None:
        # each alone: compared with none
        unknown_T = np.where(sample.topic_T < 0, np.arange(sample.tokens) + 1, 0)
        groups["topic"] = _Groups.by(sample.topic_T, unknown_T)
    ids_T = sample.token_id_T
    if ids_T is not None:
        # a token without one before it is a group of its own
        first_T = np.zeros(sample.tokens, np.int64)
        first_T[sample.run_R1[:-1]] = np.arange(1, len(sample.run_R1))
        groups["token_id"] = _Groups.by(ids_T)
        groups["previous"] = _Groups.by(ids_T, np.roll(ids_T, 1), first_T)
        groups["sequence"] = _Groups.by(ids_T, sample.sequence_T)
        groups["dealt"] = groups["token_id"].dealt(rng)
    return groups


def _layer(chosen_TK: npt.NDArray[np.uint16], experts: int, groups: dict[str, _Groups]) -> dict[str, float]:
    made_T = (chosen_TK < experts).sum(axis=1)
    shared_T: dict[str, Fractions] = {}
    bits: dict[str, float] = {}
    for name, group in groups.items():
        shared_T[name] = np.empty(len(chosen_TK))
        bits[name] = float(group_overlap(chosen_TK, group.order_T, group.start_R1, experts, _LOG_N, shared_T[name]))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "chance_L": shared_T["any"].mean() / made_T.mean(),
            "entropy_L": bits["any"],
            "position_L": _share(shared_T["position"], shared_T["any"], shared_T["any"], made_T),
        }
        if "topic" in groups:
            found["topic_L"] = _share(shared_T["topic"], shared_T["any"], shared_T["any"], made_T)
        if "token_id" in groups:
            by_id_T = shared_T["token_id"]
            found["token_id_L"] = _share(by_id_T, shared_T["any"], shared_T["any"], made_T)
            found["previous_L"] = _share(shared_T["previous"], by_id_T, shared_T["any"], made_T)
            found["sequence_L"] = _share(shared_T["sequence"], by_id_T, shared_T["any"], made_T)
            told, told_by_dealt = bits["any"] - bits["token_id"], bits["any"] - bits["dealt"]
            most = bits["any"] - (made_T * np.log2(np.maximum(made_T, 1))).sum() / made_T.sum()
            found["information_L"] = told - told_by_dealt
            found["information_share_L"] = np.divide(told - told_by_dealt, most - told_by_dealt)
    return {name: float(value) if np.isfinite(value) else math.nan for name, value in found.items()}


def _share(fine_T: Fractions, coarse_T: Fractions, any_T: Fractions, made_T: Ints) -> float:
    """(fine − coarse) ÷ (choices − any), over the tokens that have another in their fine group."""
    seen_T = ~np.isnan(fine_T)
    if not seen_T.any():
        return math.nan
    room = (made_T - any_T)[seen_T].mean()
    return float((fine_T - coarse_T)[seen_T].mean() / room) if room > 0 else math.nan


def _repeated(groups: _Groups | None) -> float | None:
    if groups is None:
        return None
    sizes_R = np.diff(groups.start_R1)
    return float(sizes_R[sizes_R > 1].sum() / max(sizes_R.sum(), 1))
