"""ExFlow's integer program: experts of successive layers on one rank where tokens go from one to the other.

Source: Yao, Anthony, Shafi, Subramoni and Panda, arXiv 2401.08383; its public program is
github.com/YJHMITWEB/ExFlow. Equally many experts of each layer stand on each rank, and the pairs of
a token's choices at consecutive layers that stand on different ranks are minimised. Tokens that go
the same way share a variable here, which changes nothing else.

- ``x[l, e, g]``: expert e of layer l stands on rank g.
- ``together[l, e, f]``: e of layer l and f of layer l + 1 share a rank; what the paper calls a cost
  is 1 minus it.

As published the linear relaxation is worth nothing: with every x at 1/G all pairs are together.
Strengthened, each expert shares its rank with exactly E/G experts of the next layer, and each of
those with E/G of the layer before, which every placement satisfies; the relaxation is then at least
as good as the heaviest such matching of each transition, and the search starts from layers set in
turns (`moecast.placement.layer_sweeps`).

Large programs are solved as the paper does: ranks are cut into parts (domains first, then halves or
thirds), experts are dealt to parts by the same program, and so on within each part. That is no
longer proved for the whole.

Axes: L MoE layer, E expert, G rank (or part).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.placement.eplb import stand_evenly
from moecast.placement.layer_sweeps import set_in_turns
from moecast.placement.solver import Solved
from moecast.placement.transitions import count_transitions, crossing_share, slots_of_ranks
from moecast.units import format_percent

if TYPE_CHECKING:
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

MOST_WHOLE = 40_000  # (L − 1) · E² · ranks for which the whole program is solved at once
MOST_PARTS = 2_000_000  # the same with the number of parts, for one level of a split program
BUILDING_S = 3e-5  # for each pair and part, of which the clock's half goes by before CP-SAT begins
DEFAULT_SECONDS = 30.0  # of deterministic solver time, without any limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Exflow:
    """The fewest crossings between layers, with equally many experts on each rank.

    Parameters
    ----------
    strong
        Add what makes the relaxation worth something, and start from layers set in turns; without,
        as published.
    """

    name: str = "exflow"
    strong: bool = False

    def supports(self, problem: PlacementProblem) -> str | None:
        """Take experts that the ranks divide, and sizes that CP-SAT can hold."""
        wanted = problem.wanted
        share = -(-wanted.experts // wanted.ep)
        if share * wanted.ep != wanted.experts:
            return f"{wanted.ep} ranks do not divide {wanted.experts} experts"
        if int(problem.slots_G.min()) < share:
            return f"needs {share} slots on every rank"
        pairs = (wanted.layers - 1) * wanted.experts**2
        if pairs * _parts(problem.domain_G)[0] > MOST_PARTS:
            return f"{pairs} pairs of experts of successive layers, it takes up to {MOST_PARTS // 2}"
        return None

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        """Solve the whole program, or part by part."""
        found = self.ranks(count_transitions(problem), problem.domain_G, budget, seed=seed)
        return Solved(
            slots_LGP=slots_of_ranks(found.part_LE, problem.empty_slots_LGP()), note=f"ExFlow: {found.words()}"
        )

    def ranks(self, pairs_LEE: Int, domain_G: Int32, budget: Budget, *, seed: int = 0) -> Crossings:
        """Place experts by where tokens go on alone: whole where that is small enough, else part by part.

        Parameters
        ----------
        pairs_LEE
            Pairs of choices at consecutive layers, [L − 1, E, E].
        domain_G
            The domain of each rank.
        """
        if pairs_LEE.size * len(domain_G) <= MOST_WHOLE:
            return fewest_crossings(pairs_LEE, len(domain_G), budget, strong=self.strong, seed=seed)
        return _split(pairs_LEE, _parts(domain_G), budget, strong=self.strong, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crossings:
    """What the program found.

    Parameters
    ----------
    part_LE
        The rank (or part) of each expert.
    share, bound
        Pairs that cross ÷ all, and what is proved that none can do better than.
    work_s
        Deterministic seconds of the solver.
    """

    part_LE: Int32
    share: float
    bound: float
    work_s: float

    @property
    def proved(self) -> bool:
        """Whether no plan has fewer."""
        return self.share - self.bound <= 1e-9

    def words(self) -> str:
        """Say how far it may be off."""
        share = format_percent(self.share)
        proved = "proved" if self.proved else f"at least {format_percent(self.bound)} proved"
        return f"crossings {share}, {proved if self.bound else 'nothing proved'}"


def fewest_crossings(
    pairs_LEE: Int, parts: int, budget: Budget, *, strong: bool, seed: int = 0, programs_left: int = 1
) -> Crossings:
    """Deal each layer's experts to so many parts of equal size, with the fewest pairs between parts.

    Parameters
    ----------
    pairs_LEE
        Pairs of choices at consecutive layers, [L − 1, E, E].
    strong
        See `Exflow`.
    """
    from ortools.sat.python import cp_model  # 0.3 s, and few solvers need it

    experts, layers = pairs_LEE.shape[1], len(pairs_LEE) + 1
    start_LE = np.tile(np.arange(experts, dtype=np.int32) * parts // experts, (layers, 1))
    if strong:
        start_LE = set_in_turns(pairs_LEE, start_LE, parts)
    begin_s, share_s = budget.seconds, budget.seconds_left / programs_left
    if share_s < BUILDING_S * pairs_LEE.size * parts:  # too little even to write the program down
        return Crossings(part_LE=start_LE, share=crossing_share(pairs_LEE, start_LE), bound=0.0, work_s=0.0)
    model: Any = cp_model.CpModel()
    x = _places(model, start_LE, parts)
    kept = [_transition(model, pairs_EE, x, layer, strong=strong) for layer, pairs_EE in enumerate(pairs_LEE)]
    model.maximize(sum(sum(terms) for terms in kept))
    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # one worker is deterministic
    solver.parameters.random_seed = seed & 0x7FFFFFFF
    work = budget.work_left(round(DEFAULT_SECONDS * 1e6)) / 1e6 / programs_left
    solver.parameters.max_deterministic_time = max(work, 1e-3)
    if share_s < float("inf"):
        solver.parameters.max_time_in_seconds = max(share_s - (budget.seconds - begin_s), 0.05)
    status = solver.solve(model)
    work_s = float(solver.response_proto.deterministic_time)
    budget.spend(round(work_s * 1e6))
    part_LE, total = start_LE, max(int(pairs_LEE.sum()), 1)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        found = [
            [[solver.value(x[layer][e][g]) for g in range(parts)] for e in range(experts)] for layer in range(layers)
        ]
        part_LE = np.argmax(np.array(found), axis=2).astype(np.int32)
    if crossing_share(pairs_LEE, start_LE) < crossing_share(pairs_LEE, part_LE):
        part_LE = start_LE
    bound = 0.0 if status == cp_model.UNKNOWN else max(0.0, 1 - solver.best_objective_bound / total)
    share = crossing_share(pairs_LEE, part_LE)
    return Crossings(part_LE=part_LE, share=share, bound=min(bound, share), work_s=work_s)


def _places(model: Any, start_LE: Int32, parts: int) -> list[list[list[Any]]]:
    """The variables x, with the start as hint: each expert in one part, equally many in each."""
    layers, experts = start_LE.shape
    x = []
    for layer in range(layers):
        of_layer = [[model.new_bool_var(f"x{layer},{e},{g}") for g in range(parts)] for e in range(experts)]
        for e, row in enumerate(of_layer):
            model.add_exactly_one(row)
            for g, variable in enumerate(row):
                model.add_hint(variable, int(start_LE[layer, e] == g))
        for column in zip(*of_layer, strict=True):
            model.add(sum(column) == experts // parts)
        x.append(of_layer)
    return x


def _transition(model: Any, pairs_EE: Int, x: Any, layer: int, *, strong: bool) -> list[Any]:
    """One transition's pairs that stay, each with its count; strengthened, pairs without tokens are needed too."""
    experts, terms = range(len(pairs_EE)), []
    parts = range(len(x[layer][0]))
    together: dict[tuple[int, int], Any] = {}
    for e in experts:
        for f in experts:
            if pairs_EE[e, f] or strong:
                pair = together[e, f] = model.new_bool_var(f"t{layer},{e},{f}")
                for g in parts:
                    model.add_bool_or(~pair, ~x[layer][e][g], x[layer + 1][f][g])
                    model.add_bool_or(~pair, x[layer][e][g], ~x[layer + 1][f][g])
                terms.append(int(pairs_EE[e, f]) * pair)
    if strong:
        share = len(pairs_EE) // len(parts)
        for e in experts:
            model.add(sum(together[e, f] for f in experts) == share)
            model.add(sum(together[f, e] for f in experts) == share)
    return terms


def _parts(domain_G: Int32) -> list[int]:
    """Into how many parts ranks are cut, level by level: domains where they are even and in order, then by primes."""
    size_N = np.bincount(domain_G)
    levels = [len(size_N), int(size_N[0])] if stand_evenly(domain_G) else [len(domain_G)]
    return [prime for size in levels for prime in _primes(size)] or [1]


def _primes(size: int) -> list[int]:
    for prime in range(2, size + 1):
        if size % prime == 0:
            return [prime, *_primes(size // prime)]
    return []


def _split(pairs_LEE: Int, levels: list[int], budget: Budget, *, strong: bool, seed: int) -> Crossings:
    """Deal experts to the parts of the first level, then those of each part to the next level's."""
    layers, experts = len(pairs_LEE) + 1, pairs_LEE.shape[1]
    rank_LE, parts = np.zeros((layers, experts), np.int32), 1
    programs = sum(int(np.prod(levels[:level])) for level in range(len(levels)))
    left, bound, work_s = programs, 0.0, 0.0
    for into in levels:
        finer_LE = np.zeros_like(rank_LE)
        for part in range(parts):
            inside_LE = np.stack([np.flatnonzero(rank_E == part) for rank_E in rank_LE])
            of_part = np.stack(
                [
                    pairs_EE[np.ix_(here, there)]
                    for pairs_EE, here, there in zip(pairs_LEE, inside_LE[:-1], inside_LE[1:], strict=True)
                ]
            )
            found = fewest_crossings(of_part, into, budget, strong=strong, seed=seed, programs_left=left)
            np.put_along_axis(finer_LE, inside_LE, part * into + found.part_LE, axis=1)
            # what crosses the first cut crosses ranks
            bound = max(bound, found.bound * float(parts == 1))
            work_s += found.work_s
            left -= 1
            budget.tell("solving", 1 - left / programs)
        rank_LE, parts = finer_LE, parts * into
    rank_LE = set_in_turns(pairs_LEE, rank_LE, parts) if strong else rank_LE
    return Crossings(part_LE=rank_LE, share=crossing_share(pairs_LEE, rank_LE), bound=bound, work_s=work_s)
