"""What `simulate_training` answers: a frozen value, a table, JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecast.files import write_text
from moecast.sim.accuracy.grounds import grounds_text
from moecast.sim.quantities import HELD_UP, INTERVAL, path_text
from moecast.sim.shown import ShownAsTable
from moecast.units import format_bytes, format_percent, format_s

SCHEMA = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPrediction(ShownAsTable):
    """How long a training step takes, where it goes and what it needs.

    Parameters
    ----------
    degrees
        tp, cp, dp, pp, virtual, ep and etp.
    microbatches, microbatches_drawn
        Of each data-parallel rank in a step, and of how many the routing was drawn.
    model_tflops_per_gpu
        As Megatron counts them: of the model, without what is computed again
        (`moecast.sim.training.flop`).
    breakdown_s, overlapped_s
        Mean over ranks of exposed seconds by part, and of communication under compute.
    held_up_s, critical_path
        Of the exchanges' seconds what is waiting for peers that one holds up; and by part the share
        of the step that its critical path goes through.
    waiting_P
        Of each pipeline rank, the part of the step in which it does nothing: the bubble, and
        waiting for peers.
    in_flight_P
        The most microbatches whose activations it keeps (chunks, where it holds several).
    memory_bytes
        By part, on the pipeline rank that holds most.
    interval_s, rests_on
        80 % interval of the step time and what it rests on, as of `moecast.sim.Prediction`.
    labels
        Whose routing it is, and whether it was recorded: every output says so.
    """

    cluster: str
    model: str
    network: str
    schedule: str
    degrees: Mapping[str, int]
    recipe: Mapping[str, Any]
    element_types: str
    trace: Mapping[str, Any]
    seed: int
    microbatches: int
    microbatches_drawn: int
    step_time_s: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    model_tflops_per_gpu: float
    breakdown_s: Mapping[str, float]
    overlapped_s: float
    held_up_s: float
    critical_path: Mapping[str, float]
    waiting_P: tuple[float, ...]
    in_flight_P: tuple[int, ...]
    memory_bytes: Mapping[str, int]
    fits: bool
    interval_s: tuple[float, ...] | None = None
    rests_on: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def table_title(self) -> str:
        """Model, schedule, cluster and rung."""
        return f"{self.model}: a training step by {self.schedule} on {self.cluster}, by {self.network}"

    def table_rows(self) -> list[tuple[str, str]]:
        """What `moecast train` prints."""
        degrees = ", ".join(f"{name} {value}" for name, value in self.degrees.items())
        waiting, memory = self.waiting_P, self.memory_bytes
        least, most = format_percent(min(waiting)), format_percent(max(waiting))
        return [
            ("layout", degrees),
            ("recipe", ", ".join(f"{name} {value}" for name, value in self.recipe.items() if name not in _OWN_ROWS)),
            ("hosts", _host_text(self.recipe)),
            ("beside microbatches", _beside_text(self.recipe)),
            ("microbatches", f"{self.microbatches} of each data-parallel rank, routing of {self.microbatches_drawn}"),
            ("step time", format_s(self.step_time_s)),
            (INTERVAL, "–" if self.interval_s is None else " to ".join(map(format_s, self.interval_s))),
            *((f"  {part}", format_s(seconds)) for part, seconds in self.breakdown_s.items()),
            ("communication under compute", format_s(self.overlapped_s)),
            (HELD_UP, format_s(self.held_up_s)),
            ("critical path", path_text(self.critical_path)),
            ("tokens/s", f"{self.tokens_per_s:,.0f}"),
            ("tokens/s per GPU", f"{self.tokens_per_s_per_gpu:,.0f}"),
            ("model TFLOP/s per GPU", f"{self.model_tflops_per_gpu:,.0f}"),
            ("ranks do nothing", most if least == most else f"{least} to {most} of the step, by pipeline rank"),
            ("most microbatches kept", ", ".join(str(kept) for kept in self.in_flight_P)),
            ("memory of the fullest rank", format_bytes(memory["total"])),
            *((f"  {part}", format_bytes(memory[part])) for part in memory if part not in _WHOLE),
            ("fits", f"{'yes' if self.fits else 'no'}: {format_bytes(memory['usable'])} usable"),
        ]

    def table_notes(self) -> list[str]:
        """What the step time rests on, the labels, and the warnings."""
        grounds = grounds_text(self.rests_on)
        return [*([grounds] if grounds else []), *self.labels, *(f"warning: {warning}" for warning in self.warnings)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"schema": SCHEMA, **{name: _plain(value) for name, value in values.items()}}


_OWN_ROWS = (
    "host_s",
    "host_launch_s",
    "host_byte_s",
    "host_copy_s",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "bucket_parameters",
)
_WHOLE = ("total", "usable", "capacity")


def _host_text(recipe: Mapping[str, Any]) -> str:
    """What hosts take, and what ranks wait for."""
    named = {
        "host_launch_s": "to launch",
        "host_s": "waited for",
        "host_byte_s": "for each byte there and back",
        "host_copy_s": "polled for each copy to another domain",
    }
    parts = [f"{format_s(recipe[name])} {what}" for name, what in named.items() if recipe[name]]
    return f"{', '.join(parts) or 'nothing'}, in each direction of an MoE layer"


def _beside_text(recipe: Mapping[str, Any]) -> str:
    """What is sent beside microbatches."""
    if not recipe["overlap_grad_reduce"]:
        return "neither gradients nor parameters"
    return "gradients and parameters" if recipe["overlap_param_gather"] else "gradients"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def write_training(prediction: TrainingPrediction, path: str | Path) -> None:
    """Write it as JSON, whole or not at all."""
    write_text(path, json.dumps(prediction.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
