"""How alike the choices of neighbouring tokens are: segment routing, segment caches and the sparsity of chunks.

Every statistic here is over all windows of m consecutive tokens of a sequence; f(e) is how often
expert e is chosen in the window. Axes: T token, L MoE layer, E expert, K choice, M window length, S
cache size, F times chosen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.traces.statistics._cache import count_hits
from moecast.traces.statistics._locality import count_windows
from moecast.traces.statistics.sample import SAMPLE_CHOICES, Source, TokenSample, sample_of
from moecast.traces.statistics.summary import mean_known

Fractions = npt.NDArray[np.float64]

WINDOW_LENGTHS = (2, 4, 8, 16, 32, 64)
CACHE_RATIOS = (1.0, 1.5, 2.0, 3.0, 4.0)
_MOST_LENGTH = 65_536
_ROLLING_CHOICES = 1 << 19  # a rolling cache costs tens of times what a window does


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Locality:
    """Segment routing best performance, segment cache best hit rate and chunk-level sparsity, by window length.

    SRP and SCH are those of Liang et al., "Not All Models Suit Expert Offloading" (arXiv
    2505.16056v1, equations 6, 7 and 9); CLS is that of Song et al., "BlockFFN" (arXiv 2507.08771,
    section 2.1), over every window.

    Parameters
    ----------
    lengths
        m of each column.
    windows_M
        Windows there are; where there are none the statistics are nan.
    srp_LM, srp_M
        Segment routing best performance: the best F1 score against the router's choices that a
        router can get which fixes its experts for m tokens. It is reached by taking each expert
        that is chosen at least α times: max over α of 2 Σ f[f ≥ α] ÷ Σ (m·[f ≥ α] + f), α being one
        number for the layer (`_LM`) or the model (`_M`).
    size_ratio_LM, size_ratio_M
        Experts that this router takes on average, over the choices of a token (the paper's ρ̂).
    cache_ratios
        ρ of each cache: it holds ⌊ρ·k⌋ experts (at least 1, at most E), k being the mean choices of
        a token at the layers with any.
    cache_sizes
        Experts in each cache.
    sch_LMS, sch_MS
        Segment cache best hit rate: part of a window's choices that its ⌊ρ·k⌋ most chosen experts
        serve, held fixed through the window (the paper's first version). `_M` pools layers that
        each have a cache of their own; the authors' number for a model is that of one cache of
        ⌊ρ·k⌋·L experts of any layer, which serves no less.
    rolling_sch_LMS, rolling_sch_MS
        The same name in the paper's later versions (v3 and after): hit rate of a cache of ⌊ρ·k⌋
        experts that starts each sequence empty and, where an expert must give way, drops the one
        that the next m tokens choose least (of equals, the one used longest ago). Over
        `rolling_tokens` tokens, whole runs spread over the sample. The authors' program
        (github.com/ljcleo/moe-lrc) counts the token at hand among the m, so it looks one token less
        far, and may drop an expert that the token at hand has used; `_M` pools layers here too.
    rolling_tokens
        Tokens that the rolling caches served.
    chunk_sparsity_LM, chunk_sparsity_M
        CLS: mean part of the experts that no token of a window chose; nan for a layer without any
        choice, which `_M` leaves out. BlockFFN's training loss cuts a sequence into
        chunks that do not overlap; all windows together stand for every place of the first cut.
    """

    lengths: tuple[int, ...]
    windows_M: npt.NDArray[np.int64]
    srp_LM: Fractions
    srp_M: Fractions
    size_ratio_LM: Fractions
    size_ratio_M: Fractions
    cache_ratios: tuple[float, ...]
    cache_sizes: tuple[int, ...]
    sch_LMS: Fractions
    sch_MS: Fractions
    rolling_sch_LMS: Fractions
    rolling_sch_MS: Fractions
    rolling_tokens: int
    chunk_sparsity_LM: Fractions
    chunk_sparsity_M: Fractions


def locality(
    source: Source | TokenSample,
    *,
    lengths: Sequence[int] = WINDOW_LENGTHS,
    cache_ratios: Sequence[float] = CACHE_RATIOS,
    most_choices: int = SAMPLE_CHOICES,
    seed: int = 0,
) -> Locality:
    """Measure how alike neighbouring tokens choose, on a sample of at most `most_choices` choices.

    Raises
    ------
    ValueError
        No batches, a length below 1, or a cache ratio that is not positive.
    """
    lengths, ratios = tuple(lengths), tuple(sorted(cache_ratios))
    if any(not 1 <= length <= _MOST_LENGTH for length in lengths):
        raise ValueError(f"lengths = {lengths}: each from 1 to {_MOST_LENGTH}")
    if any(not 0 < ratio < math.inf for ratio in ratios):
        raise ValueError(f"cache_ratios = {ratios}: each above 0 and finite")
    sample = source if isinstance(source, TokenSample) else sample_of(source, most_choices=most_choices, seed=seed)
    layers, experts, _ = sample.meta.shape_LEK
    made_L = (sample.experts_TLK < experts).sum(axis=(0, 2))
    made = float(made_L.sum()) / max(sample.tokens * int((made_L > 0).sum()), 1)
    sizes = tuple(min(max(int(ratio * made + 1e-9), 1), experts) for ratio in ratios)
    times = [np.zeros((layers, length + 1), np.int64) for length in lengths]
    hits_LMS, rolling_LMS = np.zeros((2, layers, len(lengths), len(sizes)), np.int64)
    served_LM = np.zeros((layers, len(lengths)), np.int64)
    first_R, end_R = _spread(sample)
    windows_M = np.zeros(len(lengths), np.int64)
    size_S = np.array(sizes, np.int64)
    for layer in range(layers):
        chosen_TK = np.ascontiguousarray(sample.experts_TLK[:, layer])
        for m, length in enumerate(lengths):
            windows_M[m] = count_windows(
                chosen_TK, sample.run_R1, experts, length, size_S, times[m][layer], hits_LMS[layer, m]
            )
            served_LM[layer, m] = count_hits(chosen_TK, first_R, end_R, experts, length, size_S, rolling_LMS[layer, m])
    found = _summed_up(lengths, ratios, sizes, times, hits_LMS, windows_M, experts)
    return Locality(
        **found,
        rolling_sch_LMS=_ratio(rolling_LMS, served_LM[..., None]),
        rolling_sch_MS=_ratio(rolling_LMS.sum(axis=0), served_LM.sum(axis=0)[:, None]),
        rolling_tokens=int((end_R - first_R).sum()),
    )


def _spread(sample: TokenSample) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last + 1 of runs at even distances, so many that their choices stay within bounds."""
    row_choices = sample.meta.layers * sample.meta.choices
    step = -(-sample.tokens * row_choices // _ROLLING_CHOICES)
    first_R, end_R = sample.run_R1[:-1][:: max(step, 1)], sample.run_R1[1:][:: max(step, 1)]
    return first_R, np.minimum(end_R, first_R + max(_ROLLING_CHOICES // row_choices, 1))


def _summed_up(
    lengths: tuple[int, ...],
    ratios: tuple[float, ...],
    sizes: tuple[int, ...],
    times: list[npt.NDArray[np.int64]],
    hits_LMS: npt.NDArray[np.int64],
    windows_M: npt.NDArray[np.int64],
    experts: int,
) -> dict[str, Any]:
    layers = len(hits_LMS)
    srp_LM, ratio_LM = np.full((2, layers, len(lengths)), math.nan)
    srp_M, ratio_M = np.full((2, len(lengths)), math.nan)
    served_LM = np.zeros((layers, len(lengths)), np.int64)
    sparsity_LM = np.full((layers, len(lengths)), math.nan)
    for m, length in enumerate(lengths):
        srp_M[m], ratio_M[m] = best_f1(times[m].sum(axis=0), length)
        served_LM[:, m] = times[m] @ np.arange(length + 1)
        for layer in range(layers):
            srp_LM[layer, m], ratio_LM[layer, m] = best_f1(times[m][layer], length)
        if windows_M[m]:
            used_L = served_LM[:, m] > 0
            sparsity_LM[used_L, m] = 1 - times[m][used_L, 1:].sum(axis=1) / (windows_M[m] * experts)
    return {
        "lengths": lengths,
        "windows_M": windows_M,
        "srp_LM": srp_LM,
        "srp_M": srp_M,
        "size_ratio_LM": ratio_LM,
        "size_ratio_M": ratio_M,
        "cache_ratios": ratios,
        "cache_sizes": sizes,
        "sch_LMS": _ratio(hits_LMS, served_LM[..., None]),
        "sch_MS": _ratio(hits_LMS.sum(axis=0), served_LM.sum(axis=0)[:, None]),
        "chunk_sparsity_LM": sparsity_LM,
        "chunk_sparsity_M": np.array([mean_known(sparsity_L) for sparsity_L in sparsity_LM.T]),
    }


def best_f1(times_F: npt.NDArray[np.int64], length: int) -> tuple[float, float]:
    """SRP and size ratio from how many (window, expert) pairs have the expert chosen f times; nan without choices."""
    chosen_F = (times_F * np.arange(length + 1))[::-1].cumsum()[::-1]
    taken_F = times_F[::-1].cumsum()[::-1]
    if not chosen_F[0]:
        return math.nan, math.nan
    f1_F = 2 * chosen_F[1:] / (length * taken_F[1:] + chosen_F[0])
    best = int(f1_F.argmax())
    return float(f1_F[best]), float(length * taken_F[best + 1] / chosen_F[0])


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> Fractions:
    ratio = np.full(part.shape, math.nan)
    np.divide(part, whole, out=ratio, where=np.broadcast_to(whole > 0, part.shape))
    return ratio
