"""Find the layout that serves most within limits on latency, and say how far from the best possible it is.

1. Every layout of the space, legal by construction (`space`); those that do not fit are left out (`fitting`).
2. A lower bound on the step of each, for any placement (`step_floor`): what it serves at the most. Whoever cannot meet
   the limits even so is out; so is whoever could not beat what has been found.
3. The rest in the order of what they promise, timed by the rung ``bound`` (`timed_layouts`); where none of these is
   within the limits, those that are expected nearest to them; the best by ``fluid``, with a placement of their own,
   and where that finds better ones too slow, those that it should leave within the limits.
4. The best of these with ranks on other GPUs than consecutive ones (`mappings`).

Nothing is left out by a score: scores order layouts, but only floors exclude them. What a limited number of scores
leaves open is in the certificate, which is made of the floors alone, and of consecutive ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moecast.errors import MoecastError
from moecast.placement.layouts.found_serving import FoundServing
from moecast.placement.layouts.front import by_lateness, pareto, ranked, runner_up
from moecast.placement.layouts.layout_answers import LayoutAnswers
from moecast.placement.layouts.placed_layouts import PlacedLayouts
from moecast.placement.layouts.space import Space
from moecast.placement.layouts.steady import Slo
from moecast.placement.layouts.timed_layouts import TimedLayouts
from moecast.placement.layouts.unmet import nothing_meets
from moecast.processes import Workers

if TYPE_CHECKING:
    from moecast.placement.layouts.scoring import Score
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.placement.layouts.timed_layouts import Progress

MODES = ("agg", "disagg")


def find_serving(
    question: ServingQuestion,
    gpus: int,
    slo: Slo,
    *,
    space: Space | None = None,
    modes: Sequence[str] = MODES,
    scored: int = 200,
    placed: int = 10,
    network: str = "fluid:1%",
    score: Score | None = None,
    progress: Progress | None = None,
    workers: Workers[LayoutAnswers] | None = None,
) -> FoundServing:
    """Find the layouts that serve most output tokens per second and GPU within limits on latency.

    Parameters
    ----------
    gpus
        How many there are to use.
    space
        What is searched; None: the usual space of the model on so many GPUs, as far as the question's engine has
        options for it.
    modes
        `agg`: instances that do both; `disagg`: some run prompts, others decode.
    scored, placed
        How many layouts are timed by ``bound``, and how many of these by `network` with a placement of their own; as
        many more of either where none of these is within the limits, and a quarter as many more of the first where
        the last score turns better ones down.
    score
        Times the last ones instead of `network`: for whoever simulates requests.
    workers
        Processes that answer about the question's layouts; None: this one.

    Raises
    ------
    MoecastError
        The cluster has fewer GPUs, nothing fits, or nothing meets the limits.
    """
    if gpus > question.cluster.n_gpus or gpus < 1:
        rule = f"{question.cluster.name} has {question.cluster.n_gpus}"
        raise MoecastError(rule, field="gpus", value=gpus)
    if space is None:
        space = Space(model=question.model, gpus=gpus, engine=question.cluster.hardware.engine)
    workers = Workers(LayoutAnswers(question)) if workers is None else workers
    timed = TimedLayouts(workers, gpus, slo, space, progress or _silent)
    timed.time_best(modes, scored)
    last = PlacedLayouts(timed, network, score)
    last.place_best(modes, scored, placed)
    last.map_best()
    return _found(timed, last, modes, network)


def _silent(_what: str, _done: int, _of: int) -> None:
    return


def _found(timed: TimedLayouts, last: PlacedLayouts, modes: Sequence[str], network: str) -> FoundServing:
    """All that was found.

    Raises
    ------
    MoecastError
        None is within the limits, by ``bound`` or by the last score.
    """
    scored = list(timed.scored().values())
    again, slo = [one.steady for one in last.placed], timed.slo
    # Where the last rung finds all of them too slow, the one that misses the limits least is told as it is.
    order = last.within() or by_lateness(again, slo)
    if not scored:
        raise MoecastError(
            f"{timed.gpus} GPUs have no room for instances that run prompts and others that decode", field="--serve"
        )
    if not any(one.meets(slo) for one in (*scored, *order[:1])):
        nearest = by_lateness([*again, *scored], slo)[0]
        raise MoecastError(nothing_meets(slo, nearest, timed=len(scored), untimed=timed.untimed(modes)), field="--slo")
    of_steady = {id(one.steady): one for one in last.placed}
    promised = [timed.promises(mode) for mode in modes]
    within = [each.within_Y(slo) for each in promised]
    pairs = list(zip(promised, within, strict=True))
    return FoundServing(
        winner=order[0],
        plan=of_steady[id(order[0])].plan,
        mappings=of_steady[id(order[0])].tried,
        runner_up=runner_up(order[0], [*order[1:], *last.best]),
        scored=tuple(ranked(scored, Slo())),
        placed=tuple(order),
        front=pareto(scored),
        most_tokens_per_s_per_gpu=max(float(each.rate_Y[meets].max(initial=0.0)) for each, meets in pairs),
        legal=timed.legal,
        refused=timed.refused,
        fitted=timed.fits,
        left_out=sum(int((~meets).sum()) for meets in within),
        within=sum(int(meets.sum()) for meets in within),
        slo=slo,
        gpus=timed.gpus,
        network=network,
    )
