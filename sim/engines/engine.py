"""What an engine is to a forecast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How one engine runs a model.

    Parameters
    ----------
    name
        As options call it.
    version
        The version that it describes.
    kernels
        Whose measured kernels stand for its own; `neutral`: a mean of all engines'.
    measured_moe
        Whether those of routed experts, dispatch and combine do, too; else the roofline prices
        experts, and the links and the hardware table's fixed costs the exchanges.
    attention_kernels
        Kernels beside the products and the core of grouped-query attention, of which no whole
        module was measured: rotation and filling the cache, and norms of queries and keys where
        these are kernels of their own.
    sends
        (type of experts' weights, type in which tokens travel to them) where that is not
        `ModelShape.dispatch_type`: an engine quantises before the exchange, or where they arrive.
    step_s
        Seconds of the host in each step that nothing hides: scheduling, sampling, the reply.
    step_source
        Where `step_s` comes from.
    prompt_s
        Seconds of the host for each prompt in the iteration that ends it, beside kernels, where
        requests are served (`moecast.sim.serving`): what the scheduler, the cache's bookkeeping and
        the runner do with a new request while the GPUs wait.
    request_s
        Seconds of a request's way outside the engine's iterations, to its first token: the server,
        and back.
    request_token_s
        Seconds of it for each token of the prompt: text becomes tokens.
    request_on_s
        (GPU, seconds) where hosts of some GPUs take another time than `request_s`.
    request_apart_s
        As `request_s` where prompts are computed on GPUs of their own: two servers in a row; None:
        as `request_s`.
    request_apart_on_s
        (GPU, seconds) where hosts of some GPUs take another time than `request_apart_s`.
    request_source
        Where these come from.
    prompts_apart_s
        Seconds of each iteration of GPUs that compute prompts only, for others, beside what is
        simulated.
    prompts_apart_source
        Where it comes from.
    """

    name: str
    version: str
    kernels: str
    measured_moe: bool = True
    attention_kernels: int = 4
    sends: tuple[tuple[str, str], ...] = ()
    step_s: float = 0.0
    step_source: str = ""
    prompt_s: float = 0.0
    request_s: float = 0.0
    request_token_s: float = 0.0
    request_on_s: tuple[tuple[str, float], ...] = ()
    request_apart_s: float | None = None
    request_apart_on_s: tuple[tuple[str, float], ...] = ()
    request_source: str = ""
    prompts_apart_s: float = 0.0
    prompts_apart_source: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.step_s < 1:
            raise ValueError(f"step_s = {self.step_s}: seconds of a host in one step, from 0 to less than 1")
        for name in ("prompt_s", "request_s", "request_token_s", "request_apart_s", "prompts_apart_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} = {value}: seconds of a host, from 0 to less than 1")

    def outside_s(self, prompt_tokens_Q: Float, *, gpu: str, apart: bool) -> Float:
        """Seconds of requests outside iterations [Q]; `apart`: their prompts are computed on GPUs of their own."""
        fixed_s = dict(self.request_on_s).get(gpu, self.request_s)
        if apart and self.request_apart_s is not None:
            fixed_s = dict(self.request_apart_on_s).get(gpu, self.request_apart_s)
        return fixed_s + self.request_token_s * prompt_tokens_Q
