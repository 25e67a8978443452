"""Steady state of serving from the times of single steps: no queue, no arrivals, every batch full.

*agg*: one kind of instance runs prompts and decodes. While a request decodes its tokens, its data-parallel rank also
runs the prompts of as many requests as it has sequences in flight; so a token takes a decode step and its share of
prefill. *disagg*: some instances run prompts, the others decode; what is served is what the slower side serves.
TTFT is the time of a prompt's own steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_layout import ServingLayout

NO_QUEUE = "steps, no queue"
"""What every output says of such numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """The latest that a user takes: time to first token, and per output token.

    Raises
    ------
    ValueError
        A time that is not positive.
    """

    ttft_s: float = float("inf")
    tpot_s: float = float("inf")

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: a limit is more than nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """What a layout, or a pair of them, serves.

    Parameters
    ----------
    decode, prefill
        The layouts; the same degrees in *agg*.
    decode_instances, prefill_instances
        How many of each stand on the GPUs; of *agg* they are the same ones.
    tpot_s, ttft_s
        Per output token after the first; of a prompt alone.
    tokens_per_s_per_gpu
        Output tokens, over all GPUs that there are, idle ones included.
    """

    decode: ServingLayout
    prefill: ServingLayout
    decode_instances: int
    prefill_instances: int
    tpot_s: float
    ttft_s: float
    tokens_per_s_per_gpu: float

    @property
    def split(self) -> bool:
        """Whether prompts have instances of their own."""
        return self.prefill_instances > 0

    @property
    def mapping(self) -> str:
        """How its ranks stand on GPUs, of both kinds of instances where these differ."""
        decode, prefill = self.decode.mapping.name, self.prefill.mapping.name
        return decode if decode == prefill else f"decode {decode}, prefill {prefill}"

    def step_seconds(self, *, isl: int, osl: int) -> tuple[float, float]:
        """Seconds of a decode step and of one of prompts, of which these times are made."""
        prefill_s = self.ttft_s / -(-isl // self.prefill.batch)
        if self.split:
            return self.tpot_s, prefill_s
        return self.tpot_s - self.decode.batch * prefill_s * isl / self.prefill.batch / osl, prefill_s

    def meets(self, slo: Slo) -> bool:
        """Whether both times are within the limits."""
        return self.tpot_s <= slo.tpot_s and self.ttft_s <= slo.ttft_s

    def late(self, slo: Slo) -> float:
        """The times over their limits, the later of the two; up to 1 is within."""
        return max(self.tpot_s / slo.tpot_s, self.ttft_s / slo.ttft_s)

    def name(self) -> str:
        """In one line."""
        if not self.split:
            return f"{self.decode_instances} x {self.decode.gpus} GPUs: {self.decode.name()}"
        return (
            f"prefill {self.prefill_instances} x {self.prefill.gpus} GPUs: {self.prefill.name(prompts=True)}; "
            f"decode {self.decode_instances} x {self.decode.gpus} GPUs: {self.decode.name()}"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        layouts = {
            name: {field: getattr(layout, field) for field in layout.__dataclass_fields__}
            | {"ep": layout.ep, "mapping": layout.mapping.name}
            for name, layout in (("decode", self.decode), ("prefill", self.prefill))
        }
        numbers = ("decode_instances", "prefill_instances", "tpot_s", "ttft_s", "tokens_per_s_per_gpu")
        return {"name": self.name(), **layouts, **{name: getattr(self, name) for name in numbers}}


def together(
    decode: ServingLayout, prefill: ServingLayout, decode_s: float, prefill_s: float, *, gpus: int, isl: int, osl: int
) -> Steady:
    """Serve by instances that do both (agg).

    Parameters
    ----------
    decode_s, prefill_s
        Seconds of a step of either: `decode.batch` tokens, and `prefill.batch` tokens of prompts, on each data-parallel
        rank.
    """
    prompt_s = prefill_s * isl / prefill.batch
    tpot_s = decode_s + decode.batch * prompt_s / osl
    instances = gpus // decode.gpus
    return Steady(
        decode=decode,
        prefill=prefill,
        decode_instances=instances,
        prefill_instances=0,
        tpot_s=tpot_s,
        ttft_s=_ttft_s(prefill, prefill_s, isl),
        tokens_per_s_per_gpu=decode.sequences / tpot_s * instances / gpus,
    )


def apart(
    decode: ServingLayout, prefill: ServingLayout, decode_s: float, prefill_s: float, *, gpus: int, isl: int, osl: int
) -> Steady | None:
    """Serve by instances of two kinds (disagg), as many of each as serve most; None where there is no room for both."""
    prompts, requests = prefill.sequences / prefill_s / isl, decode.sequences / decode_s / osl
    best, chosen = 0.0, (0, 0)
    for ones in range(1, (gpus - decode.gpus) // prefill.gpus + 1):
        others = (gpus - ones * prefill.gpus) // decode.gpus
        if (served := min(ones * prompts, others * requests)) > best:
            best, chosen = served, (ones, others)
    if not best:
        return None
    return Steady(
        decode=decode,
        prefill=prefill,
        decode_instances=chosen[1],
        prefill_instances=chosen[0],
        tpot_s=decode_s,
        ttft_s=_ttft_s(prefill, prefill_s, isl),
        tokens_per_s_per_gpu=best * osl / gpus,
    )


def served_by(
    split: bool, decode: ServingLayout, prefill: ServingLayout, decode_s: float, prefill_s: float, **lengths: int
) -> Steady | None:
    """Serve by instances of two kinds, or of one."""
    return (apart if split else together)(decode, prefill, decode_s, prefill_s, **lengths)


def _ttft_s(prefill: ServingLayout, prefill_s: float, isl: int) -> float:
    """A prompt's own steps: as many as it has chunks."""
    return prefill_s * -(-isl // prefill.batch)
