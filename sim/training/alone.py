"""Which of the exchanges beside microbatches have no kernel beside them after all, and so are not slowed by any.

What is gathered before a rank's first kernel is alone, and what is reduced behind its last kernel.
Whether an exchange is one of these, the rung ``bound`` says of the step in which all are slowed.
Taking the factor from these exchanges moves no other one over to them: those before the first
kernel end sooner, and so the kernel starts sooner; those behind the last kernel start sooner, but
not before it.

Axes: G rank of the program, R rank of a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from moecast.sim.network import Bound
from moecast.sim.program import Compute, Exchange, StepProgram


def with_plain_where_alone(program: StepProgram, plain: Mapping[int, Exchange]) -> StepProgram:
    """The program with its exchanges at the places of `plain` replaced by these where no kernel runs beside them."""
    if not plain:
        return program
    times = Bound().run(program)
    first_G, last_G = np.full(program.n_ranks, np.inf), np.zeros(program.n_ranks)
    for task, enter_R, leave_R in zip(program.tasks, times.enter_S, times.leave_S, strict=True):
        if isinstance(task, Compute) and task.microbatch >= 0:
            ranks_R = program.ranks_of(task)
            first_G[ranks_R] = np.minimum(first_G[ranks_R], enter_R)
            last_G[ranks_R] = np.maximum(last_G[ranks_R], leave_R)
    tasks = list(program.tasks)
    for place, exchange in plain.items():
        ranks_R = program.ranks_of(exchange)
        before = bool((times.leave_S[place] <= first_G[ranks_R]).all())
        if before or bool((times.enter_S[place] >= last_G[ranks_R]).all()):
            tasks[place] = exchange
    return replace(program, tasks=tuple(tasks))
