"""What a whole serving run is predicted to do: its time per output token and its tokens/s of a GPU, without a queue.

A decode step at the batch that was in flight; in mode `agg` with the prefill that stands between
decode steps. While a sequence decodes its output, as many prompts are run as there are sequences in
flight, each in steps of its own: every token waits for its part of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from moecast.sim import Workload, draw_steps
from moecast.sim.simulate import simulate_step
from moecast.validate.published.serving import MEAN_LENGTH, SEED, ServingRow, one_text_routing

CHUNK = 8192
"""Tokens of prompts that an instance takes in a step, at most."""
PREFILL_MODES = {"per_choice": "per_domain"}


def predicted_tpot_ms(row: ServingRow, fields: Mapping[str, str], *, network: str = "bound") -> float:
    """Milliseconds of an output token after the first.

    Raises
    ------
    MoecastError, ValueError
        As of `ServingRow`.
    """
    del fields
    decode_ms = row.predict_ms(network=network)
    if row.mode == "disagg":
        return decode_ms
    return decode_ms + row.batch * prompt_ms(row, network=network) / (MEAN_LENGTH * row.osl)


def tokens_per_s_per_gpu(row: ServingRow, fields: Mapping[str, str], tpot_ms: float) -> float:
    """Output tokens/s of a GPU, those for prompts included, of as many sequences in flight as there were."""
    workers, gpus = float(fields.get("decode_workers") or 1), float(fields["gpus"])
    return row.batch * row.dp * workers / (tpot_ms * 1e-3) / gpus


def prompt_ms(row: ServingRow, *, network: str = "bound") -> float:
    """Milliseconds that the instance takes for one prompt on each of its data-parallel ranks."""
    tokens = max(1, round(MEAN_LENGTH * row.isl))
    chunk = max(1, min(tokens, -(-CHUNK // row.dp)))
    # What a prompt's step does not depend on is left out, so that runs of one layout share it.
    same = replace(row, id="", use="", batch=0.0, stated=0.0, concurrency=0.0, tpot_ms=0.0, ttft_ms=0.0, osl=1)
    return tokens / chunk * _prefill_ms(same, chunk, tokens, network)


@lru_cache(maxsize=256)
def _prefill_ms(row: ServingRow, chunk: int, tokens: int, network: str) -> float:
    """A chunk in the middle of a prompt."""
    cluster, model = row.cluster(), row.shape()
    plan = row.plan(model)
    plan = plan.with_(dispatch=PREFILL_MODES.get(plan.dispatch or "", plan.dispatch))
    trace = one_text_routing(model, chunk * plan.dp)
    work = Workload(phase="prefill", tokens_per_rank=chunk, steps=1, seed=SEED, reuse=True, from_phase="decode")
    [step] = draw_steps(trace, work, ranks=plan.dp)
    place_T = np.arange(step.n_tokens) % chunk
    step = replace(step, context_T=place_T + 1 + (tokens - chunk) // 2, last_T=place_T == chunk - 1)
    return simulate_step(cluster, model, plan, trace, step, network=network)[1].step_time_s * 1e3
