"""What a forecast is unsure of, and by how much: each parameter with the size of its own error, and whose that is.

Sizes are known errors that ship (kernel families on rows that nobody fitted, exchanges and batches of published runs),
or are stated as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecast.placement.layouts.changes import Change
from moecast.sim.accuracy import interval_of, known_errors
from moecast.sim.cost.family_errors import ATTENTION, EXPERTS, PRODUCTS, family_errors
from moecast.sim.gains import LINK_NAMES

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.placement.layouts.training.question import TrainingQuestion

KINDS = {EXPERTS: ("expert",), ATTENTION: ("attention",), PRODUCTS: ("router", "other")}
"""Parts of a step that a family of kernels prices; attention has its products, the rest elementwise work beside."""
STATED_KERNELS = 0.3
"""Of kernels that no shipped errors are of: own tables, the roofline."""
STATED_LINK = 0.1
STATED_EXCHANGE = 0.5
SKEWED = "zipf:0.5"
"""Of made routing: between what log.md tried on measured runs, none of which recorded theirs."""
FITTED_HOST_S = 0.011
FILLS = {"agg": 0.95, "disagg": 0.66}
"""In nine of ten published runs more of the configured batch was in flight: 258 runs of one kind of instance, 93 with
prefill apart (`serving.csv`, in flight / stated)."""
BETWEEN, INSIDE, SUMS = (
    "dispatch and combine between nodes",
    "dispatch and combine inside a node",
    "collectives inside a node",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """An uncertain parameter, moved to either end.

    Parameters
    ----------
    parameter
        Its name.
    ends
        The changes, the better one first; a single one where only one end is in question.
    told
        The ends in a few words each.
    rests_on
        Where the size comes from.
    """

    parameter: str
    ends: tuple[Change, ...]
    told: tuple[str, ...]
    rests_on: str


def moves_of(question: ServingQuestion, *, apart: bool, summed: bool = False) -> tuple[Move, ...]:
    """All parameters that a steady state of serving rests on.

    Parameters
    ----------
    apart
        Whether prompts have instances of their own.
    summed
        Whether the layouts' experts are added up by all-reduces, so that their combine is one of the collectives.
    """
    return (*_kernels(question), *_exchanges(summed=summed), *_links(), _routing(question), _fill(apart=apart))


def training_moves(question: TrainingQuestion) -> tuple[Move, ...]:
    """All parameters that the layers of a training step rest on."""
    return (*_kernels(question), *_exchanges(summed=False), *_links(), _hosts(question.recipe.host.fixed_s))


def _hosts(now_s: float) -> Move:
    """Waits for hosts: none, or what was fitted on the one kind of machine whose training steps were measured."""
    other_s = 0.0 if now_s else FITTED_HOST_S
    return Move(
        parameter="waits for hosts",
        ends=(Change(host_s=other_s),),
        told=(f"{other_s * 1e3:g} ms in each direction of an MoE layer",),
        rests_on="fitted on measured steps on EC2 P6-B300 (docs/accuracy.md): of your machines nobody knows",
    )


def _kernels(question: ServingQuestion | TrainingQuestion) -> list[Move]:
    known = {error.family: error for error in family_errors(question.cluster.hardware, question.model)}
    moves = []
    for family, kinds in KINDS.items():
        error = known.get(family)
        size, whose = STATED_KERNELS, "stated: no shipped errors are of these kernels"
        if error is not None:
            size, whose = error.p80, f"four of five of {error.rows:,} measured kernels are off by less ({error.whose})"
        moves.append(_by_factors(f"kernels: {family}", 1 / (1 + size), 1 + size, whose, kinds=kinds))
    return moves


def _exchanges(*, summed: bool) -> list[Move]:
    """By measured dispatches and collectives: 80 % intervals of measured / predicted."""
    sums = ("other", "combine") if summed else ("other",)
    moves = [_exchange("collectives", SUMS, sums)]
    return moves if summed else [_exchange("dispatch and combine", BETWEEN, ("dispatch", "combine")), *moves]


def _exchange(name: str, family: str, kinds: tuple[str, ...]) -> Move:
    rows = known_errors().of(family)
    found = interval_of(rows)
    low, high, whose = 1 / (1 + STATED_EXCHANGE), 1 + STATED_EXCHANGE, "stated: too few were measured"
    if found is not None:
        low, high, whose = found.low, found.high, f"80 % of {len(rows)} measured {family}"
    return _by_factors(name, low, high, whose, kinds=kinds, computing=False)


def _links() -> list[Move]:
    cables = {"NVLink speed": (LINK_NAMES["nvlink"],), "NIC speed": (LINK_NAMES["nic"], LINK_NAMES["pcie"])}
    return [
        _by_factors(name, 1 / (1 + STATED_LINK), 1 + STATED_LINK, f"stated: {STATED_LINK:.0%}", cables=kinds)
        for name, kinds in cables.items()
    ]


def _by_factors(
    parameter: str,
    low: float,
    high: float,
    rests_on: str,
    *,
    kinds: tuple[str, ...] = (),
    cables: tuple[str, ...] = (),
    computing: bool = True,
) -> Move:
    ends = tuple(Change(kinds=kinds, cables=cables, computing=computing, times=times) for times in (low, high))
    told = tuple(f"{times:.2f} x the time" for times in (low, high))
    return Move(parameter=parameter, ends=ends, told=told, rests_on=rests_on)


def _routing(question: ServingQuestion) -> Move:
    told = ("even", SKEWED) if has_own_routing(question) else (SKEWED,)
    laws = {"even": "uniform", SKEWED: SKEWED}
    return Move(
        parameter="routing",
        ends=tuple(Change(routing=laws[end]) for end in told),
        told=told,
        rests_on="stated: even, and skewed as zipf:0.5, with experts in order; public runs did not record theirs",
    )


def has_own_routing(question: ServingQuestion) -> bool:
    """Whether tokens choose other than evenly."""
    made = question.trace.meta.source.get("made")
    return not (isinstance(made, Mapping) and made.get("routing") == "uniform routing")


def _fill(*, apart: bool) -> Move:
    mode = "disagg" if apart else "agg"
    return Move(
        parameter="batches in flight",
        ends=(Change(fill=FILLS[mode]),),
        told=(f"{FILLS[mode]:.0%} full",),
        rests_on="nine of ten published runs had more of their configured batch in flight",
    )
