"""The tokens that a search looks at: those of as many steps of the Workload as the trace gives, drawn several times.

More steps than are simulated are drawn, and with other seeds too, so that a plan is fitted to the
text and not to the accident of which texts met in a step (with one drawing, plans were 1.6 % slower
on text that they had not seen). A window is a step's tokens of one EP group, or several of one
topic taken together; the cost of a plan is the mean over windows of the slowest rank, never the
slowest rank of all windows taken together.

Axes: T token, L layer, K choice, E expert, W window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry
from moecast.errors import MoecastError
from moecast.sim.context.shared import home_ranks
from moecast.sim.drawn_steps import draw_steps
from moecast.traces.meta import NO_CHOICE

if TYPE_CHECKING:
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.sim.workload import Workload
    from moecast.traces import RoutingTrace

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

MAX_WINDOWS = 16
ENOUGH_TOKENS = 1 << 14  # drawn for a search, where the trace has them
MOST_DRAWINGS = 4
DRAWN_TOKENS = 1 << 16  # of all drawings together, but at least one is made
MAX_TOKENS = 1 << 14  # whose copies are counted; loads are of all


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Tokens, and which of them are in flight together.

    Parameters
    ----------
    row_T, rank_T
        Row in the trace, and the rank that dispatches it, as a member of its EP group.
    step_T
        The step and EP group it is drawn in; counts of choices start afresh in each.
    window_T
        Its window.
    counted_T
        Whether its copies are counted.
    counted_share_W
        The part of the window's tokens that is counted.
    step_share_W
        The part of all (step, EP group) pairs that is in the window.
    n_steps
        How many such pairs: costs are divided by it.
    load_LWE
        Choices of each expert in each window, at each layer.
    topic_W
        A number for the topic of each window's steps; 0 where they are mixed.
    scenario_W
        The scenario of each window: a search looks at the worst one. All 0: there is one, the mean
        over windows.
    """

    row_T: Int
    rank_T: Int32
    step_T: Int32
    window_T: Int32
    counted_T: npt.NDArray[np.bool_]
    counted_share_W: npt.NDArray[np.float64]
    step_share_W: npt.NDArray[np.float64]
    n_steps: int
    load_LWE: Int
    topic_W: Int32
    scenario_W: Int32

    @property
    def n(self) -> int:
        """How many windows."""
        return len(self.counted_share_W)

    @classmethod
    def of(
        cls,
        trace: RoutingTrace,
        steps: Sequence[Step],
        wanted: Plan,
        *,
        domain_G: Int32 | None = None,
        most: int = MAX_WINDOWS,
    ) -> Windows:
        """Sort the tokens of steps into at most `most` windows, for the EP groups of a plan.

        `domain_G`: the domain of each rank; None: they are all of one.
        """
        ranks = wanted.layout
        home_T = np.concatenate([home_ranks(wanted, step, domain_G) for step in steps])
        step_T = np.repeat(np.arange(len(steps)), [step.n_tokens for step in steps])
        key_T = step_T * wanted.groups + ranks.group_G[home_T]
        order = np.lexsort((home_T, step_T))
        topics = [step.topic or "" for step in steps for _ in range(wanted.groups)]
        window_of_key, topic_W = _merged(topics, most)
        window_T = window_of_key[key_T[order]]
        n = int(window_of_key.max()) + 1
        counted_T = _spread(len(order), MAX_TOKENS)
        size_W = np.bincount(window_T, minlength=n)
        row_T = np.concatenate([step.token_T for step in steps])[order]
        return cls(
            row_T=row_T,
            rank_T=ranks.member_G[home_T[order]],
            step_T=key_T[order].astype(np.int32),
            window_T=window_T,
            counted_T=counted_T,
            counted_share_W=np.bincount(window_T[counted_T], minlength=n) / np.maximum(size_W, 1),
            step_share_W=np.bincount(window_of_key, minlength=n) / len(topics),
            n_steps=len(topics),
            load_LWE=count_loads(trace.experts_TLK, row_T, window_T, n, wanted.experts),
            topic_W=topic_W,
            scenario_W=np.zeros(n, np.int32),
        )

    def pooled(self) -> Windows:
        """Give the same tokens in one window for each topic."""
        n = int(self.topic_W.max()) + 1
        window_T = self.topic_W[self.window_T]
        load_LWE = np.zeros((len(self.load_LWE), n, self.load_LWE.shape[2]), np.int64)
        for window, topic in enumerate(self.topic_W):
            load_LWE[:, topic] += self.load_LWE[:, window]
        counted_W = np.bincount(window_T[self.counted_T], minlength=n)
        return replace(
            self,
            window_T=window_T,
            counted_share_W=counted_W / np.maximum(np.bincount(window_T, minlength=n), 1),
            step_share_W=np.bincount(self.topic_W, self.step_share_W, n).astype(np.float64),
            load_LWE=load_LWE,
            topic_W=np.arange(n, dtype=np.int32),
            scenario_W=np.arange(n, dtype=np.int32) if self.scenario_W.any() else np.zeros(n, np.int32),
        )

    @property
    def weight_W(self) -> npt.NDArray[np.float64]:
        """What a window's sums count for, so that the mean over each scenario's steps comes out: 1 / their number."""
        share_C = np.bincount(self.scenario_W, self.step_share_W)
        return np.asarray(1.0 / (self.n_steps * share_C[self.scenario_W]))


def draw_more(
    trace: RoutingTrace, workload: Workload, planning: tuple[Step, ...], *, ranks: int
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Draw steps to fit plans to, and steps to compare plans on.

    To fit: as many steps as give enough tokens, or as the trace has, then again with other seeds.
    To compare: the steps of one more drawing, so that no plan wins by knowing which texts meet; the
    planning steps where there is none.

    Parameters
    ----------
    planning
        The Workload's own steps.
    ranks
        DP ranks that hold tokens.
    """
    if workload.steps_mode != "drawn":
        return planning, planning
    steps = _longest_draw(trace, workload, planning, ranks)
    tokens = sum(step.n_tokens for step in steps)
    drawings = max(1, min(MOST_DRAWINGS, MAX_WINDOWS // len(steps), DRAWN_TOKENS // max(tokens, 1)))
    seeds = range(workload.seed + 1, workload.seed + drawings + 1)
    more = [_draw(trace, replace(workload, seed=seed), ranks) or () for seed in seeds]
    return (*steps, *(step for drawing in more[:-1] for step in drawing)), tuple(more[-1]) or planning


def _longest_draw(trace: RoutingTrace, workload: Workload, steps: Sequence[Step], ranks: int) -> Sequence[Step]:
    tokens = sum(step.n_tokens for step in steps)
    fits, fails = len(steps), 1 + -(-ENOUGH_TOKENS * len(steps) // max(tokens, 1))
    while fails - fits > 1:
        middle = (fits + fails) // 2
        more = _draw(trace, replace(workload, steps=middle), ranks)
        if more is None:
            fails = middle
        else:
            steps, fits = more, middle
    return steps


def _draw(trace: RoutingTrace, workload: Workload, ranks: int) -> Sequence[Step] | None:
    """The steps of a workload; None where the trace is too small for it."""
    try:
        return draw_steps(trace, workload, ranks=ranks)
    except MoecastError:
        return None


def _merged(topics: list[str], most: int) -> tuple[Int32, Int32]:
    """Find the window of each step, and the topic of each window.

    Steps of one topic share windows where there would be more than `most`.
    """
    names = sorted(set(topics))
    per_topic = max(1, most // len(names))
    window_of = np.empty(len(topics), np.int32)
    topic_W: list[int] = []
    for number, name in enumerate(names):
        of_topic = [index for index, topic in enumerate(topics) if topic == name]
        share = min(per_topic, len(of_topic))
        window_of[of_topic] = len(topic_W) + np.arange(len(of_topic)) * share // len(of_topic)
        topic_W += [number] * share
    return window_of, np.array(topic_W, np.int32)


def _spread(n: int, most: int) -> npt.NDArray[np.bool_]:
    """At most `most` of n, evenly spread."""
    chosen = np.zeros(n, bool)
    chosen[np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)] = True
    return chosen


@entry
def count_loads(experts_TLK: npt.NDArray[np.uint16], row_T: Int, window_T: Int32, windows: int, experts: int) -> Int:
    """Choices of each expert in each window at each layer: int64 [L, W, E]."""
    layers, choices = experts_TLK.shape[1], experts_TLK.shape[2]
    load_LWE = np.zeros((layers, windows, experts), np.int64)
    for t in range(len(row_T)):
        for layer in range(layers):
            for k in range(choices):
                expert = experts_TLK[row_T[t], layer, k]
                if expert != NO_CHOICE:
                    load_LWE[layer, window_T[t], expert] += 1
    return load_LWE
