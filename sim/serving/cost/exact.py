"""The exact cost of an iteration: every one is simulated, with the requests that are in it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.serving.cost.engine_step import EngineStep, pieces_of
from moecast.sim.serving.cost.step_load import StepLoad

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


class ExactCost:
    """Simulates every iteration.

    Parameters
    ----------
    engine
        What times steps.
    topic_Q
        The topic of each request.
    swap_block_s
        Seconds that a block takes between a GPU and its host.
    prompt_s
        Seconds of the host, in the iteration that ends it, for each prompt beside what is
        simulated.
    iteration_s
        Seconds of every iteration beside.
    """

    def __init__(
        self,
        engine: EngineStep,
        topic_Q: Int,
        *,
        swap_block_s: float = 0.0,
        prompt_s: float = 0.0,
        iteration_s: float = 0.0,
    ) -> None:
        self._engine, self._topic_Q, self._swap_block_s = engine, topic_Q, swap_block_s
        self._prompt_s, self._iteration_s = prompt_s, iteration_s
        self.simulated = 0

    @property
    def by_request(self) -> bool:
        """It asks who is in each iteration."""
        return True

    def seconds(self, load: StepLoad) -> float:
        """Seconds of one iteration."""
        self.simulated += 1
        timed = self._engine.time(self._engine.step(pieces_of(load.scheduled_G, self._topic_Q)))
        prompts_s = self._prompt_s * float(load.prompts_G.max())
        return timed.seconds + prompts_s + self._iteration_s + load.swapped_blocks * self._swap_block_s

    def ahead(self, load: StepLoad, steps: int) -> Float:
        """Not asked for: iterations are simulated one by one."""
        raise NotImplementedError("an exact cost takes iterations one by one")
