"""Published layouts of flat tables, told apart by the names of their columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class TableLayout:
    """A published layout.

    Parameters
    ----------
    columns
        The file's column for each of ours; with + between, the sum of several.
    phase
        Of all its tokens.
    """

    columns: Mapping[str, str]
    phase: str | None = None


_LAYOUTS = (
    # Schema olmoe_decode_atomic_routing_v1: an event for each generated token, as it is read, and
    # layer.
    TableLayout(
        {
            "sequence": "sequence_id",
            "position": "prompt_length+generated_token_index",
            "layer": "layer_index",
            "expert": "requested_expert_ids",
            "weight": "router_weights",
            "token_id": "token_id",
            "topic": "domain_id",
        },
        phase="decode",
    ),
)


def layout_of(names: Collection[str]) -> TableLayout | None:
    """The layout whose columns all are there; entries of an archive may end in ``.npy``."""
    there = {name.removesuffix(".npy") for name in names}
    for layout in _LAYOUTS:
        if all(set(column.split("+")) <= there for column in layout.columns.values()):
            return layout
    return None
