"""Whether requests that come at random can be served as fast as they come: said before any of them is.

The most that ranks can answer: a full batch, as large as cache and limits let it be, decodes all
the time but for what prompts take. Real batches are no larger, so that a rate above this bound
never drains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moecast.errors import MoecastError
from moecast.sim.serving.arrivals import ArrivalLaw
from moecast.sim.serving.cost.step_load import StepLoad
from moecast.sim.serving.request import Request
from moecast.sim.serving.workers import Workers


def most_requests_per_s(workers: Workers, requests: Sequence[Request], *, prefilled: bool = False) -> float:
    """Requests per second that the workers can answer at the most, of the mean length.

    `prefilled`: their prompts are computed elsewhere.
    """
    prompt = float(np.mean([request.prompt_tokens for request in requests]))
    output = float(np.mean([request.output_tokens for request in requests]))
    limits, ranks = workers.limits, workers.pool.ranks
    held = max(1.0, prompt + output / 2)
    batch = int(max(1, min(limits.max_sequences, limits.kv_blocks * limits.block_tokens / held, len(requests))))
    decode_s = _decode_s(workers, batch, held, ranks)
    # In mixed iterations prompts ride along: what they add is at least their part of an iteration
    # full of them.
    chunk = int(max(1, min(limits.max_batched_tokens, round(prompt))))
    prompt_s = (
        0.0 if prefilled else (_prompt_s(workers, chunk, ranks) - _decode_s(workers, 1, 1, ranks)) * prompt / chunk
    )
    seconds = max(prompt_s, 0.0) / ranks + (output - 1) * decode_s / (batch * ranks)
    return workers.count / max(seconds, 1e-300)


def _load(ranks: int, prompt: int, prompt_keys: int, decodes: int, decode_keys: int) -> StepLoad:
    filled = [np.full(ranks, value) for value in (prompt, prompt_keys, int(prompt > 0), decodes, decode_keys)]
    return StepLoad(
        prompt_tokens_G=filled[0],
        prompt_keys_G=filled[1],
        prompts_G=filled[2],
        decodes_G=filled[3],
        decode_keys_G=filled[4],
    )


def _decode_s(workers: Workers, batch: int, context: float, ranks: int) -> float:
    return workers.cost.seconds(_load(ranks, 0, 0, batch, round(batch * context)))


def _prompt_s(workers: Workers, tokens: int, ranks: int) -> float:
    return workers.cost.seconds(_load(ranks, tokens, tokens * (tokens + 1) // 2, 0, 0))


def check_drains(
    workers: Workers, requests: Sequence[Request], arrivals: ArrivalLaw, *, prefilled: bool = False
) -> None:
    """Fail where requests come faster than the bound.

    Raises
    ------
    MoecastError
        Names the rate and the bound.
    """
    if workers.cost.by_request:
        return  # an exact cost asks who is in an iteration
    most = most_requests_per_s(workers, requests, prefilled=prefilled)
    if arrivals.rate_per_s > most:
        rule = f"never drains: at most {most:.3g} requests/s of this length can be served (--overload runs it)"
        raise MoecastError(rule, field="requests", value=str(arrivals))
