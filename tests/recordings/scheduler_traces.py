"""Request traces for an engine's scheduler, and what it did with them: made, written and read.

Only the standard library is used here: the recording scripts run this file inside an engine's own environment.

A file is gzipped JSON: `provenance`, and `traces`, each with its `settings`, its `requests` (a row of REQUEST each, its
number is its id) and its `steps`, a row of STEP each. Equal steps in a row are written once, with how often.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

REQUEST = ("arrival_step", "prompt_tokens", "output_tokens", "prefix_group", "prefix_tokens")
STEP = ("times", "requests", "tokens", "admitted", "preempted", "finished", "blocks_used_more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of an engine's scheduler, in vLLM's words; what an engine does not know it leaves alone.

    The last ones are SGLang's; they are written only where they differ from what stands here.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    kv_blocks: int
    chunked: bool
    prefix_caching: bool
    long_prefill_token_threshold: int
    long_prefill_token_threshold_adaptive: bool
    reserve_full_isl: bool
    watermark: float
    ignore_eos: bool = False
    conservativeness: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one call of the scheduler decided: ids in its order, and per id the tokens computed now.

    `admitted` has (id, tokens found in the cache) of each that enters the batch, `blocks_used` those held at the end.
    """

    requests: list[int]
    tokens: list[int]
    admitted: list[tuple[int, int]]
    preempted: list[int]
    finished: list[int]
    blocks_used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests that come at given steps, the settings they meet, and, where recorded, the steps."""

    settings: Settings
    requests: list[tuple[int, int, int, int, int]]
    steps: list[Step]


def make_trace(rng: random.Random) -> Trace:
    """One trace of a random kind: lengths, arrivals, shared prefixes, and limits tight enough to bite in many."""
    requests = _requests(rng, rng.choice((6, 12, 24, 40)))
    longest = max(prompt + output for _, prompt, output, _, _ in requests)
    block_size = rng.choice((1, 8, 16, 16, 16, 32, 64))
    chunked = rng.random() < 0.75
    budget = rng.choice((16, 48, 64, 128, 256, 512, 1024, 2048))
    if not chunked:
        budget = max(budget, longest + rng.choice((0, 1, 64)))
    alone = -(-longest // block_size)
    return Trace(
        requests=requests,
        steps=[],
        settings=Settings(
            max_num_batched_tokens=budget,
            max_num_seqs=min(rng.choice((1, 2, 4, 8, 16, 64)), budget),
            block_size=block_size,
            kv_blocks=int(alone * rng.choice((1, 1.2, 1.5, 2, 2, 3, 4, 8, 40))) + rng.randrange(4),
            chunked=chunked,
            prefix_caching=rng.random() < 0.6,
            long_prefill_token_threshold=rng.choice((0, 0, 0, 7, 32, 100)) if chunked else 0,
            long_prefill_token_threshold_adaptive=rng.random() < 0.3,
            reserve_full_isl=rng.random() < 0.6,
            watermark=rng.choice((0.0, 0.0, 0.0, 0.01, 0.05, 0.2)),
        ),
    )


def _requests(rng: random.Random, count: int) -> list[tuple[int, int, int, int, int]]:
    """Rows of REQUEST, by rising arrival."""
    gap = rng.choice((0.0, 0.5, 3.0, 12.0))
    burst = rng.choice((1, 1, 4))
    most_prompt = rng.choice((20, 150, 600))
    most_output = rng.choice((1, 12, 60, 150))
    groups = rng.choice((0, 1, 2, 5))
    shared = [rng.randint(1, most_prompt) for _ in range(groups)]
    rows, step = [], 0.0
    for index in range(count):
        if gap and index % burst == 0:
            step += rng.expovariate(1 / (gap * burst))
        prompt = rng.randint(1, most_prompt)
        group = rng.randrange(-1, groups) if groups else -1
        prefix = 0
        if group >= 0:
            prompt = max(prompt, min(shared[group] + rng.choice((0, 0, 1, 5)), most_prompt))
            prefix = min(shared[group] - rng.choice((0, 0, 0, 9)) * (shared[group] > 9), prompt)
        rows.append((int(step), prompt, rng.randint(1, most_output), group, prefix))
    return rows


def token_ids(request: int, row: tuple[int, int, int, int, int]) -> list[int]:
    """A prompt's tokens: equal in two requests only where both have them of one group's prefix."""
    _, prompt, _, group, prefix = row
    own = [output_token(request, position) for position in range(prefix, prompt)]
    return [(group + 1) * 10**5 + position for position in range(prefix)] + own


def output_token(request: int, position: int) -> int:
    """A token that no other request has, and this one at no other position."""
    return 10**8 + request * 10**5 + position


def write_traces(path: Path, traces: list[Trace], provenance: dict[str, Any]) -> None:
    """Write traces with their steps, the same bytes for the same content."""
    document = {
        "provenance": provenance,
        "columns": {"requests": REQUEST, "steps": STEP},
        "traces": [
            {"settings": _written(trace.settings), "requests": trace.requests, "steps": list(_packed(trace.steps))}
            for trace in traces
        ],
    }
    text = json.dumps(document, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def read_traces(path: Path) -> tuple[dict[str, Any], list[Trace]]:
    """The provenance and the traces of a file."""
    document = json.loads(gzip.decompress(path.read_bytes()))
    traces = [
        Trace(
            settings=Settings(**trace["settings"]),
            requests=[tuple(row) for row in trace["requests"]],
            steps=list(_unpacked(trace["steps"])),
        )
        for trace in document["traces"]
    ]
    return document["provenance"], traces


def _written(settings: Settings) -> dict[str, Any]:
    own = {field.name: field.default for field in fields(settings) if field.default is not MISSING}
    return {name: value for name, value in asdict(settings).items() if name not in own or value != own[name]}


def _packed(steps: list[Step]) -> Iterator[list[Any]]:
    row: list[Any] | None = None
    used = 0
    for step in steps:
        more, used = step.blocks_used - used, step.blocks_used
        ones = all(count == 1 for count in step.tokens)
        facts = [step.requests, 1 if ones else step.tokens, step.admitted, step.preempted, step.finished]
        if row is not None and row[1:6] == facts:
            row[0] += 1
            row[6].append(more)
            continue
        if row is not None:
            yield row
        row = [1, *facts, [more]]
    if row is not None:
        yield row


def _unpacked(rows: list[list[Any]]) -> Iterator[Step]:
    used = 0
    for times, requests, tokens, admitted, preempted, finished, more in rows:
        for index in range(times):
            used += more[index]
            yield Step(
                requests=requests,
                tokens=[1] * len(requests) if tokens == 1 else tokens,
                admitted=[(request, context) for request, context in admitted],
                preempted=preempted,
                finished=finished,
                blocks_used=used,
            )
