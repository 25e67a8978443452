"""Random StepPrograms: uneven ranks, barriers, relays, sparse and dense traffic, several EP groups, ties and zeros."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from moecast.sim.program import COMMUNICATION, COMPUTE, Compute, Exchange, Flows, StepProgram


@st.composite
def programs(draw: st.DrawFn, *, most_ranks: int = 6, most_stages: int = 6) -> StepProgram:
    """Small programs of every kind that `random_program` makes."""
    return random_program(
        np.random.default_rng(draw(st.integers(0, 2**32))),
        ranks=draw(st.integers(1, most_ranks)),
        stages=draw(st.integers(1, most_stages)),
        density=draw(st.sampled_from([0.2, 0.7, 1.0])),
        even=draw(st.booleans()),
        fed=draw(st.booleans()),
    )


def random_program(
    rng: np.random.Generator,
    *,
    ranks: int,
    stages: int,
    density: float = 1.0,
    even: bool = False,
    fed: bool = True,
) -> StepProgram:
    """A program over a random network; `even` makes equal sizes and speeds, so that events fall together."""
    links = int(rng.integers(1, 9))
    capacity_J = np.full(links, 4.0) if even else rng.choice([1.0, 2.0, 2.0, 5.0], links) * rng.uniform(0.5, 2, links)
    group_G = rng.integers(0, min(rng.integers(1, 3), ranks), ranks).astype(np.int32)
    routes = {pair: random_route(rng, links) for pair in np.ndindex(ranks, ranks)}
    made = []
    for _ in range(stages):
        if rng.random() < 0.4:
            seconds_G = np.full(ranks, 0.5) if even else rng.exponential(1.0, ranks) * (rng.random(ranks) < 0.8)
            made.append(Compute(kind="expert", layer=0, seconds_R=seconds_G))
            continue
        made.append(
            Exchange(
                kind="dispatch",
                layer=0,
                flows=random_flows(rng, group_G, routes, density=density, even=even, fed=fed),
                setup_s=float(rng.choice([0.0, 0.1, 1.0])),
                barrier=bool(rng.random() < 0.3),
                group_R=group_G,
            )
        )
    names = tuple(f"link {j}" for j in range(links))
    return StepProgram(tasks=tuple(made), n_ranks=ranks, capacity_J=capacity_J, link_names_J=names)


@st.composite
def graphs(draw: st.DrawFn, *, most_ranks: int = 5, most_tasks: int = 6) -> StepProgram:
    """Small programs whose tasks stand on several streams, wait for some earlier ones and take some of the ranks."""
    return random_graph(
        np.random.default_rng(draw(st.integers(0, 2**32))),
        ranks=draw(st.integers(1, most_ranks)),
        tasks=draw(st.integers(1, most_tasks)),
        even=draw(st.booleans()),
        fed=draw(st.booleans()),
    )


def random_graph(
    rng: np.random.Generator, *, ranks: int, tasks: int, even: bool = False, fed: bool = True
) -> StepProgram:
    """A program of tasks on streams over a random network."""
    sequence = random_program(rng, ranks=ranks, stages=1, even=even, fed=fed)
    links = len(sequence.capacity_J)
    made: list[Compute | Exchange] = []
    for place in range(tasks):
        own_R = np.sort(rng.permutation(ranks)[: rng.integers(1, ranks + 1)]).astype(np.int32)
        earlier = [int(p) for p in range(place) if rng.random() < 0.3]
        where = {
            "layer": 0,
            "ranks_R": None if len(own_R) == ranks else own_R,
            "stream": [COMPUTE, COMMUNICATION, "copy", None][rng.integers(4)],
            "after": tuple(p for p in earlier if rng.random() < 0.7),
            "after_all": tuple(p for p in earlier if rng.random() < 0.3),
        }
        n = len(own_R)
        if rng.random() < 0.4:
            seconds_R = np.full(n, 0.5) if even else rng.exponential(1.0, n) * (rng.random(n) < 0.8)
            made.append(Compute(kind="expert", seconds_R=seconds_R, **where))
            continue
        group_R = rng.integers(0, min(rng.integers(1, 3), n), n).astype(np.int32)
        routes = {pair: random_route(rng, links) for pair in np.ndindex(n, n)}
        flows = random_flows(rng, group_R, routes, density=0.8, even=even, fed=fed)
        barrier, setup_s = bool(rng.random() < 0.3), float(rng.choice([0.0, 0.1, 1.0]))
        made.append(Exchange(kind="dispatch", flows=flows, setup_s=setup_s, barrier=barrier, group_R=group_R, **where))
    return StepProgram(
        tasks=tuple(made), n_ranks=ranks, capacity_J=sequence.capacity_J, link_names_J=sequence.link_names_J
    )


def random_route(rng: np.random.Generator, links: int) -> tuple[np.ndarray, np.ndarray]:
    """A few links and the shares taken of them; none at all now and then."""
    link = rng.permutation(links)[: rng.integers(0, min(links, 4) + 1)]
    return link, rng.choice([1.0, 1.0, 0.5, 0.25, 0.01], len(link))


def random_flows(
    rng: np.random.Generator,
    group_G: np.ndarray,
    routes: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]],
    *,
    density: float,
    even: bool,
    fed: bool,
) -> Flows:
    """A flow for most pairs of one EP group; some feed others, which somebody else may wait for."""
    pairs = [p for p in routes if group_G[p[0]] == group_G[p[1]] and rng.random() < density]
    parents: list[list[int]] = [[] for _ in pairs]
    if fed:
        for _ in range(len(pairs)):
            pair = list(routes)[rng.integers(len(routes))]
            mates = [f for f, p in enumerate(pairs) if group_G[p[0]] == group_G[pair[0]] == group_G[pair[1]]]
            if mates and rng.random() < 0.6:
                parents.append([mates[i] for i in rng.permutation(len(mates))[: rng.integers(1, 4)]])
                pairs.append(pair)
    n = len(pairs)
    order = rng.permutation(n)  # children may stand before their parents
    place = np.argsort(order)
    pairs, parents = [pairs[i] for i in order], [[int(place[p]) for p in parents[i]] for i in order]
    feeds = {p for family in parents for p in family}
    waiter_F = [-1 if f in feeds and rng.random() < 0.7 else pair[1] for f, pair in enumerate(pairs)]
    used = [routes[pair] for pair in pairs]
    bytes_F = np.full(n, 2.0) if even else rng.exponential(3.0, n)
    return Flows(
        bytes_F=bytes_F * (rng.random(n) < 0.9),
        source_rank_F=np.array([s for s, _ in pairs], np.int32),
        destination_rank_F=np.array([d for _, d in pairs], np.int32),
        waiter_F=np.array(waiter_F, np.int32),
        offsets_F1=_offsets([len(link) for link, _ in used]),
        link_X=np.concatenate([np.zeros(0), *(link for link, _ in used)]).astype(np.int32),
        share_X=np.concatenate([np.zeros(0), *(share for _, share in used)]),
        latency_F=np.full(n, 0.125) if even else rng.exponential(0.2, n),
        parent_offsets_F1=_offsets([len(family) for family in parents]),
        parent_R=np.array([p for family in parents for p in family], np.int32),
        feed_delay_F=rng.choice([0.0, 0.25], n),
        feed_tail_F=rng.choice([0.0, 0.25], n),
    )


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
