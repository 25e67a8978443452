"""What a rank computes for its own tokens, whatever they are routed to: attention, dense layers, router, LM head.

It depends on few numbers of a rank, so that it is tabulated once, from the functions that price
every step: over tokens, and over (tokens, keys per token) for the cores of attention.

Axes: G DP rank (or anything), N tokens of a table, K mean keys of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moecast.sim import compute
from moecast.sim.attention_shape import AttentionShape, Mixer
from moecast.sim.placed_model import PlacedModel
from moecast.sim.serving.cost.step_load import StepLoad

Float = npt.NDArray[np.float64]
Kind = tuple[Mixer, tuple[tuple[int | None, int], ...]]
"""What mixes tokens in a layer, and what it reads: at most so many keys, of every so many."""

DENSE, PER_OCTAVE, MOST_TOKENS, MOST_KEYS = 64, 24, 1 << 20, 1 << 22


def _axis(most: int, dense: int, per_octave: int) -> Float:
    """Whole numbers at first, then ever farther apart."""
    few = np.arange(dense + 1, dtype=np.float64)
    many = np.unique(np.round(2 ** (np.arange(np.log2(dense), np.log2(most) + 1e-9, 1 / per_octave)[1:])))
    return np.concatenate([few, many])


TOKENS_N = _axis(MOST_TOKENS, DENSE, PER_OCTAVE)
KEYS_K = np.concatenate([[1.0], 2 ** np.arange(1, np.log2(MOST_KEYS) + 1e-9, 0.5)])


@dataclass(frozen=True, slots=False, kw_only=True, eq=False)
class OwnWork:
    """A rank's own seconds in an iteration, under the kernels of one part.

    Parameters
    ----------
    placed
        The model under its plan, in that part.
    """

    placed: PlacedModel

    def seconds_G(self, load: StepLoad) -> Float:
        """Own seconds of each rank."""
        tokens_G = load.tokens_G
        total_G = np.interp(tokens_G, TOKENS_N, self._token_s_N)
        total_G = total_G + np.interp(load.prompts_G + load.decodes_G, TOKENS_N, self._head_s_N)
        if load.decodes_G.any():
            total_G = total_G + _between(self._decode_core_NK, load.decodes_G, load.decode_keys_G)
        if load.prompt_tokens_G.any():
            total_G = total_G + _between(self._prompt_core_NK, load.prompt_tokens_G, load.prompt_keys_G)
        return np.asarray(total_G)

    def decode_ahead_WG(self, load: StepLoad, steps: int) -> Float:
        """Own seconds in so many decode iterations [W, G], each of which adds a key to every sequence."""
        decodes_G = load.decodes_G
        keys_WG = load.decode_keys_G + np.arange(steps)[:, None] * decodes_G
        fixed_G = np.interp(decodes_G, TOKENS_N, self._token_s_N) + np.interp(decodes_G, TOKENS_N, self._head_s_N)
        core_WG = _between(self._decode_core_NK, np.broadcast_to(decodes_G, keys_WG.shape), keys_WG)
        return np.asarray(fixed_G + core_WG)

    @cached_property
    def _token_s_N(self) -> Float:
        """By tokens of a rank, all that keys have no part in."""
        placed = self.placed
        model, hardware, tp = placed.model, placed.sites.cluster.hardware, placed.plan.tp
        summed = bool(placed.sum_choices)
        kept_N = TOKENS_N if summed else np.ceil(TOKENS_N / tp)
        layers = len(model.moe_layer_ids)
        total_N = compute.embedding_seconds(model, hardware, kept_N)
        for (mixer, _), count in self._mixers.items():
            total_N = total_N + count * compute.norm_seconds(model, hardware, kept_N)
            if isinstance(mixer, AttentionShape):
                total_N = total_N + count * compute.projection_seconds(
                    model, hardware, TOKENS_N, shape=mixer, tp=tp, phase=placed.phase
                )
        dense = len(set(model.dense_layer_ids) - set(model.no_mlp_layers))
        total_N = total_N + dense * compute.dense_layer_seconds(model, hardware, TOKENS_N, tp=tp)
        total_N = total_N + layers * compute.router_seconds(model, hardware, kept_N)
        whole = placed.experts_are_summed
        shared_N = TOKENS_N if whole else np.ceil(TOKENS_N / tp)
        return np.asarray(
            total_N + layers * compute.shared_expert_seconds(model, hardware, shared_N, tp=tp if whole else 1)
        )

    @cached_property
    def _head_s_N(self) -> Float:
        placed = self.placed
        return np.asarray(
            compute.head_seconds(placed.model, placed.sites.cluster.hardware, TOKENS_N, tp=placed.plan.tp)
        )

    @cached_property
    def _decode_core_NK(self) -> Float:
        return self._core_NK("decode")

    @cached_property
    def _prompt_core_NK(self) -> Float:
        return self._core_NK("prefill")

    @property
    def _mixers(self) -> dict[Kind, int]:
        """Layers of each kind: what mixes tokens, with what it reads."""
        model = self.placed.model
        counts: dict[Kind, int] = {}
        for layer in range(model.n_layers):
            mixer = model.mixer_of(layer)
            if mixer is not None:
                reads = tuple(mixer.reads_of(layer)) if isinstance(mixer, AttentionShape) else ()
                counts[mixer, reads] = counts.get((mixer, reads), 0) + 1
        return counts

    def _core_NK(self, part: str) -> Float:
        """Seconds of the mixers over tokens and mean keys, without the projections that parts share."""
        placed = self.placed
        model, hardware, tp = placed.model, placed.sites.cluster.hardware, placed.plan.tp
        tokens_NK = np.broadcast_to(TOKENS_N[:, None], (len(TOKENS_N), len(KEYS_K)))
        keys_NK = tokens_NK * KEYS_K
        total_NK = np.zeros(keys_NK.shape)
        for (mixer, reads), count in self._mixers.items():
            windowed = bool(reads) and reads != ((None, 1),)
            read_NK = np.zeros(keys_NK.shape)
            for most, share in reads:
                read_NK = read_NK + tokens_NK * np.minimum(KEYS_K, np.inf if most is None else most) / share
            seconds_NK = compute.attention_seconds(
                model,
                hardware,
                phase=part,
                tokens_G=tokens_NK,
                context_sum_G=keys_NK,
                window_sum_G=read_NK if windowed else None,
                mixer=mixer,
                tp=tp,
            )
            if isinstance(mixer, AttentionShape):
                seconds_NK = seconds_NK - compute.projection_seconds(
                    model, hardware, tokens_NK, shape=mixer, tp=tp, phase=part
                )
            total_NK += count * seconds_NK
        return total_NK


def _between(table_NK: Float, tokens_G: npt.NDArray[np.int64], keys_G: npt.NDArray[np.int64]) -> Float:
    """Read a table between its points, bilinear; 0 where there are no tokens."""
    tokens = tokens_G.astype(np.float64)
    mean = np.maximum(keys_G / np.maximum(tokens, 1), 1.0)
    n = np.clip(np.searchsorted(TOKENS_N, tokens, side="right") - 1, 0, len(TOKENS_N) - 2)
    k = np.clip(np.searchsorted(KEYS_K, mean, side="right") - 1, 0, len(KEYS_K) - 2)
    part_n = (tokens - TOKENS_N[n]) / (TOKENS_N[n + 1] - TOKENS_N[n])
    part_k = (mean - KEYS_K[k]) / (KEYS_K[k + 1] - KEYS_K[k])
    low = (1 - part_k) * table_NK[n, k] + part_k * table_NK[n, k + 1]
    high = (1 - part_k) * table_NK[n + 1, k] + part_k * table_NK[n + 1, k + 1]
    return np.asarray(np.where(tokens > 0, (1 - part_n) * low + part_n * high, 0.0))
