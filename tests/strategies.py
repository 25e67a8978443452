"""Hypothesis strategies for small random inputs."""

import numpy as np
from hypothesis import strategies as st

from moecast.traces import NO_CHOICE, PHASES, RoutingTrace, TraceMeta


@st.composite
def traces(
    draw,
    *,
    layers=(1, 4),
    experts=(2, 16),
    choices=(1, 4),
    tokens=(1, 40),
    phases=PHASES,
    max_topics=3,
    empty_choices=True,
    weights=None,
    recorded_steps=None,
):
    """A small RoutingTrace that obeys the format.

    Ranges are inclusive (low, high). `weights` and `recorded_steps` (step and source_rank) are drawn when None; some
    sequences have no topic; `empty_choices` allows NO_CHOICE. Some experts are far more popular than others.
    """
    n_layers, n_experts = draw(st.integers(*layers)), draw(st.integers(*experts))
    n_choices = draw(st.integers(min(choices[0], n_experts), min(choices[1], n_experts)))
    n_tokens = draw(st.integers(*tokens))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    meta = TraceMeta(model="random", layers=n_layers, experts=n_experts, choices=n_choices)
    sequence_T, position_T = _sequences(rng, n_tokens)
    n_topics = draw(st.integers(0, max_topics))
    with_weights = draw(st.booleans()) if weights is None else weights
    with_steps = draw(st.booleans()) if recorded_steps is None else recorded_steps
    shape = (n_tokens, n_layers, n_choices)
    topic_of_sequence = rng.integers(-1, n_topics, n_tokens)  # -1: not known
    return RoutingTrace(
        meta=meta,
        experts_TLK=_choices(rng, shape, n_experts, empty_choices and draw(st.booleans())),
        sequence_T=sequence_T,
        position_T=position_T,
        phase_T=_phases(rng, sequence_T, [PHASES.index(phase) for phase in phases]),
        topics=tuple(f"topic-{i}" for i in range(n_topics)),
        topic_T=topic_of_sequence[sequence_T].astype(np.int16),
        step_T=np.sort(rng.integers(0, 4, n_tokens)).astype(np.uint32) if with_steps else None,
        source_rank_T=rng.integers(0, 4, n_tokens).astype(np.uint16) if with_steps else None,
        token_id_T=rng.integers(0, 1000, n_tokens).astype(np.int32) if draw(st.booleans()) else None,
        weights_TLK=rng.random(shape).astype(np.float16) if with_weights else None,
    )


def _sequences(rng, tokens):
    starts_T = rng.random(tokens) < 0.2
    if tokens:
        starts_T[0] = True
    sequence_T = np.cumsum(starts_T) - 1
    first_T = np.maximum.accumulate(np.where(starts_T, np.arange(tokens), 0))
    return sequence_T.astype(np.uint32), (np.arange(tokens) - first_T).astype(np.uint32)


def _phases(rng, sequence_T, allowed):
    phase_of_sequence = rng.choice(allowed, len(sequence_T) + 1)
    return phase_of_sequence[sequence_T].astype(np.uint8)


def _choices(rng, shape, experts, empty):
    popularity = rng.exponential(1.0, experts) ** 2 + 1e-9
    # Gumbel top-k: K distinct experts per token and layer, drawn by popularity
    score = np.log(popularity) + rng.gumbel(size=(*shape[:2], experts))
    chosen = np.argsort(-score, axis=2)[:, :, : shape[2]].astype(np.uint16)
    if empty:
        chosen[rng.random(shape) < 0.2] = NO_CHOICE
    return chosen
