"""Windows for a plan that must do well whatever the topic: those of each topic are a scenario of their own.

A plan that is fitted to mixed steps may be far off where a step is of one topic. So the drawn
tokens are sorted by topic, as if every step were of one, and the search looks at the topic that is
worst.

Axes: T token, W window, C scenario, E expert.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moecast.errors import MoecastError
from moecast.placement.windows import MAX_WINDOWS, Windows, count_loads
from moecast.sim.drawn_steps import draw_steps

if TYPE_CHECKING:
    from moecast.sim.step import Step
    from moecast.sim.workload import Workload
    from moecast.traces import RoutingTrace

ENOUGH_TOKENS = 1000  # for a window of a topic
SCENARIOS = ("topic",)
"""What a plan can be made robust against."""


def by_topic(windows: Windows, trace: RoutingTrace, experts: int) -> Windows:
    """Sort the tokens of drawn steps by topic: each topic is a scenario of several windows.

    Several, so that a plan is not fitted to the mean of a topic's texts only: as many as it fills
    steps or thousands of tokens. A window's choices count as those of a whole step
    (`Windows.weight_W`), however many tokens the topic has.

    Raises
    ------
    MoecastError
        The trace knows no topics.
    """
    topic_T = trace.topic_T[windows.row_T]
    if not trace.topics or (topic_T < 0).all():
        raise MoecastError("the trace knows no topics", field="robust", value="topic")
    _, scenario_T = np.unique(topic_T, return_inverse=True)
    order = np.argsort(scenario_T, kind="stable")
    tokens_C = np.bincount(scenario_T)
    most = max(1, MAX_WINDOWS // len(tokens_C))
    steps_C = np.rint(tokens_C * windows.n_steps / len(topic_T)).astype(np.int64)
    parts_C = np.clip(np.maximum(steps_C, tokens_C // ENOUGH_TOKENS), 1, most)
    begin_C, first_C = np.cumsum(tokens_C) - tokens_C, np.cumsum(parts_C) - parts_C
    sorted_T = scenario_T[order]
    place_T = np.arange(len(order)) - begin_C[sorted_T]
    window_T = np.empty(len(order), np.int32)
    window_T[order] = first_C[sorted_T] + place_T * parts_C[sorted_T] // tokens_C[sorted_T]
    n = int(parts_C.sum())
    size_W = np.bincount(window_T, minlength=n)
    scenario_W = np.repeat(np.arange(len(parts_C)), parts_C).astype(np.int32)
    return replace(
        windows,
        window_T=window_T,
        counted_share_W=np.bincount(window_T[windows.counted_T], minlength=n) / size_W,
        step_share_W=size_W / len(window_T),
        load_LWE=count_loads(trace.experts_TLK, windows.row_T, window_T, n, experts),
        topic_W=scenario_W,
        scenario_W=scenario_W,
    )


def topic_steps(trace: RoutingTrace, workload: Workload, *, ranks: int) -> tuple[Step, ...]:
    """One step of each topic, to compare plans on; a topic with few tokens repeats them.

    Raises
    ------
    MoecastError
        The trace knows no topics.
    """
    if workload.steps_mode != "drawn":
        rule = "steps as recorded are of no one topic: draw them"
        raise MoecastError(rule, field="robust", value="topic")
    names = set(np.unique(trace.topic_T[trace.topic_T >= 0]).tolist())
    if workload.topics is not None:
        names &= {index for index, name in enumerate(trace.topics) if name in workload.topics}
    alike = replace(workload, one_topic_per_step=True, reuse=True, steps=max(len(names), 1))
    # each once, whatever its weight
    topics = tuple(alike.topics) if alike.topics is not None else None
    return tuple(draw_steps(trace, replace(alike, topics=topics), ranks=ranks))
