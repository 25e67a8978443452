"""Making routing from a fitted model: any number of tokens, at any shape.

Axes: T donor token, M MoE layer made, J choice made, N token made, B sequence made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.limits import check_memory
from moecast.traces.meta import TraceMeta
from moecast.traces.synthesis.deal import Topics, deal
from moecast.traces.synthesis.lift import lifted_rows
from moecast.traces.synthesis.model import TraceModel
from moecast.traces.synthesis.recombine import Recombination, fill, needed_MT, recombined
from moecast.traces.synthesis.shape import Shape, parse_shape
from moecast.traces.trace import RoutingTrace

Progress = Callable[[int, int], None]
Rows = npt.NDArray[np.uint16]

_BATCH_BYTES = 32 << 20


def synthesise(
    model: TraceModel,
    *,
    shape: Shape | str | None = None,
    tokens: int,
    seed: int = 0,
    topics: Topics | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    lifting: Progress | None = None,
) -> Iterator[RoutingTrace]:
    """Yield batches of synthetic routing, in memory bounded by the batch and the model.

    The same model, shape, tokens, seed and topics give the same tokens, however they are cut into
    batches. Positions are those of real sequences; `step`, `source_rank` and `weights` are not
    made. Token ids, where the source has them, are those of the donors.

    Parameters
    ----------
    shape
        L, E and K, or text such as ``58x256x8``; None: the source's. One model and shape make one
        set of experts, whatever the seed.
    topics
        Shares of the tokens by topic, or names only: these, as recorded. None: all of them, as
        recorded.
    batch_tokens
        About how many tokens a batch holds: whole sequences; by default 32 MiB.
    progress
        Called with (tokens made, tokens).
    lifting
        Called before, with (layers of another shape made of the donors, layers).

    Raises
    ------
    MoecastError
        No tokens, a seed below 0, a topic that the model does not have, or a shape that no trace
        has or whose donors do not fit in memory.
    """
    for field, value, least, most in (("tokens", tokens, 1, 2**32 - 1), ("seed", seed, 0, 2**63 - 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
            rule = f"must be a whole number from {least} to {most}"
            raise MoecastError(rule, field=field, value=value)
    if batch_tokens is not None and batch_tokens < 1:
        raise ValueError(f"batch_tokens = {batch_tokens}: must be at least 1")
    wanted = _shape(model, shape)
    check_memory(2 * model.donors.n_tokens * wanted.layers * wanted.choices, f"shape {wanted}")
    meta = synthetic_meta(model, shape=wanted, seed=int(seed), topics=topics)
    size = batch_tokens or max(1, _BATCH_BYTES // (2 * wanted.layers * wanted.choices))

    def pieces() -> Iterator[tuple[slice, Recombination]]:
        dealt = deal(model.donors, tokens=int(tokens), seed=int(seed), topics=topics)
        return recombined(model.donors, model.neighbours_TR, dealt, layers=wanted.layers, seed=int(seed))

    return _batches(model, wanted, meta, pieces, size, int(tokens), progress, lifting)


def synthetic_meta(
    model: TraceModel, *, shape: Shape | None = None, seed: int, topics: Topics | None = None
) -> TraceMeta:
    """What a synthetic trace says of itself: that it is none of the source model's, like what, and by which seed."""
    wanted, source = _shape(model, shape), model.meta
    own = Shape(layers=source.layers, experts=source.experts, choices=source.choices)
    record = {
        "like": {
            "model": source.model,
            "content_hash": model.content_hash,
            "tokens": model.tokens,
            "shape": str(own),
            "phase": model.phase,
            "donor_tokens": model.donors.n_tokens,
        },
        "shape": str(wanted),
        "seed": seed,
        "topics": _plain(topics),
        "software": {"moecast": version("moecast")},
    }
    return TraceMeta(
        model=f"synthetic {wanted}, like {source.model}",
        layers=wanted.layers,
        experts=wanted.experts,
        choices=wanted.choices,
        layer_ids=source.layer_ids if wanted.layers == source.layers else None,
        source={"synthesis": record},
        notes=f"Synthetic: no model made these choices. Fitted to {model.donors.n_tokens:,} of the "
        f"{model.tokens:,} tokens of {source.model} ({own}).",
    )


def _shape(model: TraceModel, shape: Shape | str | None) -> Shape:
    if shape is None:
        return Shape(layers=model.meta.layers, experts=model.meta.experts, choices=model.meta.choices)
    return parse_shape(shape) if isinstance(shape, str) else shape


def _plain(topics: Topics | None) -> dict[str, float] | list[str] | None:
    if topics is None:
        return None
    return {name: float(weight) for name, weight in topics.items()} if isinstance(topics, Mapping) else list(topics)


def _batches(
    model: TraceModel,
    shape: Shape,
    meta: TraceMeta,
    pieces: Callable[[], Iterator[tuple[slice, Recombination]]],
    batch_tokens: int,
    tokens: int,
    progress: Progress | None,
    lifting: Progress | None,
) -> Iterator[RoutingTrace]:
    donors = model.donors.n_tokens
    # fewer tokens than donors: some donors stand nowhere, and need not be lifted
    wanted_MT = needed_MT(pieces(), donors, shape.layers) if tokens < donors else None
    rows_TMJ = lifted_rows(model, shape, needed_MT=wanted_MT, progress=lifting)
    pending: list[tuple[slice, Recombination]] = []
    number = waiting = done = 0
    for piece in pieces():
        pending.append(piece)
        waiting += len(piece[1].donor_T)
        if waiting >= batch_tokens or done + waiting == tokens:
            yield _batch(model.donors.trace, rows_TMJ, meta, pending, number)
            number, done = number + len(pending), done + waiting
            pending, waiting = [], 0
            if progress:
                progress(done, tokens)


def _batch(
    donors: RoutingTrace, rows_TMJ: Rows, meta: TraceMeta, pending: list[tuple[slice, Recombination]], number: int
) -> RoutingTrace:
    """The sequences from `number` on: phase, topic and position are the place's, the token's id is the donor's."""
    place_N = np.concatenate([np.arange(places.start, places.stop) for places, _ in pending])
    donor_N = np.concatenate([made.donor_T for _, made in pending])
    partner_N = np.concatenate([made.partner_T for _, made in pending])
    window_N2 = np.concatenate([made.window_T2 for _, made in pending])
    made_NMJ = np.empty((len(place_N), *rows_TMJ.shape[1:]), np.uint16)
    fill(rows_TMJ, donor_N, partner_N, window_N2, made_NMJ)
    number_B = np.arange(number, number + len(pending), dtype=np.uint32)
    return RoutingTrace(
        meta=meta,
        experts_TLK=made_NMJ,
        sequence_T=np.repeat(number_B, [len(made.donor_T) for _, made in pending]),
        position_T=donors.position_T[place_N],
        phase_T=donors.phase_T[place_N],
        topics=donors.topics,
        topic_T=donors.topic_T[place_N],
        token_id_T=None if donors.token_id_T is None else donors.token_id_T[donor_N],
    )
