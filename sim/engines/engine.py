"""What an engine is to a forecast."""

from __future__ import annotations

from dataclasses import dataclass


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
        Whether those of routed experts, dispatch and combine do, too; else the roofline prices experts, and the links
        and the hardware table's fixed costs the exchanges.
    attention_kernels
        Kernels beside the products and the core of grouped-query attention, of which no whole module was measured:
        rotation and filling the cache, and norms of queries and keys where these are kernels of their own.
    sends_bf16_for
        Types of experts' weights for which tokens travel in bf16 and are quantised where they arrive.
    step_s
        Seconds of the host in each step that nothing hides: scheduling, sampling, the reply.
    step_source
        Where `step_s` comes from.
    prompt_step_s
        Seconds that an iteration with tokens of prompts takes beside its kernels, where requests are served
        (`moecast.sim.serving`): such iterations run without CUDA graphs, and what they are made of is put together.
    request_s
        Seconds of a request's way outside the engine's iterations, to its first token: the server, tokens of its text,
        and back.
    request_apart_s
        The same where prompts are computed on GPUs of their own: two servers in a row; None: as `request_s`.
    request_source
        Where `prompt_step_s`, `request_s` and `request_apart_s` come from.
    """

    name: str
    version: str
    kernels: str
    measured_moe: bool = True
    attention_kernels: int = 4
    sends_bf16_for: tuple[str, ...] = ()
    step_s: float = 0.0
    step_source: str = ""
    prompt_step_s: float = 0.0
    request_s: float = 0.0
    request_apart_s: float | None = None
    request_source: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.step_s < 1:
            raise ValueError(f"step_s = {self.step_s}: seconds of a host in one step, from 0 to less than 1")
        for name in ("prompt_step_s", "request_s", "request_apart_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} = {value}: seconds of a host, from 0 to less than 1")

    def beside_s(self, *, apart: bool) -> float:
        """Seconds of a request outside iterations; `apart`: its prompt is computed on GPUs of their own."""
        return self.request_apart_s if apart and self.request_apart_s is not None else self.request_s
