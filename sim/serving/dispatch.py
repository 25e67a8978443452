"""Which attention-DP rank a request goes to when it comes.

Axes: R rank of a pool, over all its instances, each of which has `each` of them in a row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.serving.request import Request

Int = npt.NDArray[np.int64]

Rule = Callable[[int, Int, Int, int], int]
"""From how many have come before, requests and prompt tokens on each rank, and ranks of an instance, to a rank."""


def round_robin(come: int, requests_R: Int, tokens_R: Int, each: int) -> int:
    """Each in turn (SGLang's default)."""
    del tokens_R, each
    return come % len(requests_R)


def least_requests(come: int, requests_R: Int, tokens_R: Int, each: int) -> int:
    """The rank with fewest requests, the first of equals (vLLM's balancer counts them, those that wait more)."""
    del come, tokens_R, each
    return int(requests_R.argmin())


def least_tokens(come: int, requests_R: Int, tokens_R: Int, each: int) -> int:
    """The rank with fewest tokens of requests that are not at an end, then fewest requests (TensorRT-LLM)."""
    del come, each
    return int(np.lexsort((requests_R, tokens_R))[0])


def instances_in_turn(come: int, requests_R: Int, tokens_R: Int, each: int) -> int:
    """Each instance in turn, and of its ranks the one with fewest requests.

    A frontend that deals without a look at who is busy (Dynamo's default, `--router-mode
    round-robin`), before engines that deal among their own ranks.
    """
    del tokens_R
    first = come % (len(requests_R) // each) * each
    return first + int(requests_R[first : first + each].argmin())


DISPATCH_RULES: dict[str, Rule] = {
    "round_robin": round_robin,
    "least_requests": least_requests,
    "least_tokens": least_tokens,
    "instances_in_turn": instances_in_turn,
}


class Dispatcher:
    """Deals requests to the ranks of a pool and counts what each has.

    Parameters
    ----------
    rule
        One of `DISPATCH_RULES`.
    ranks, each
        Of the pool, and of each of its instances; None: there is one.

    Raises
    ------
    MoecastError
        No such rule.
    """

    def __init__(self, rule: str, ranks: int, *, each: int | None = None) -> None:
        if rule not in DISPATCH_RULES:
            raise MoecastError(f"one of {', '.join(DISPATCH_RULES)}", field="dp_dispatch", value=rule)
        self._rule, self._each = DISPATCH_RULES[rule], each or ranks
        self._requests_R, self._tokens_R = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
        self._come = 0
        self._at: dict[int, tuple[int, int]] = {}

    def choose(self, request: Request) -> int:
        """Deal a request; its rank."""
        rank = self._rule(self._come, self._requests_R, self._tokens_R, self._each)
        self._come += 1
        self._requests_R[rank] += 1
        self._tokens_R[rank] += request.tokens
        self._at[request.id] = rank, request.tokens
        return rank

    def ended(self, request_id: int) -> int:
        """Take an ended request off its rank; which that was."""
        rank, tokens = self._at.pop(request_id)
        self._requests_R[rank] -= 1
        self._tokens_R[rank] -= tokens
        return rank
