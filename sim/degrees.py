"""The degrees of parallelism that a question asks for, before a cluster says how many ranks there are."""

from __future__ import annotations

from dataclasses import dataclass, fields

from moecast.sim.layout import Layout
from moecast.sim.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """What is asked of a layout; None: not asked, so what a plan has, else 1 (`ep`: all ranks that are left).

    Parameters
    ----------
    tp, cp, dp, pp, vpp
        Tensor, context and data parallel ranks, pipeline stages, and chunks of layers of each.
    ep, etp
        Ranks of an EP group, and ranks that share each of its members' experts by width.
    """

    tp: int | None = None
    cp: int | None = None
    dp: int | None = None
    pp: int | None = None
    vpp: int | None = None
    ep: int | None = None
    etp: int | None = None

    @property
    def given(self) -> dict[str, int]:
        """Those that are asked for, by name."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def layout(self, ranks: int) -> Layout:
        """Lay out so many ranks.

        Raises
        ------
        ValueError
            Names the degree that does not divide, and what.
        """
        return Layout.of_ranks(ranks, **_as_fields(self.given))

    def contiguous(
        self,
        sizes_LEK: tuple[int, int, int],
        layer_ids: tuple[int, ...] | None,
        *,
        ranks: int,
        slots_per_rank: int | None = None,
    ) -> Plan:
        """Give the plan of so many ranks with experts in order.

        Raises
        ------
        ValueError
            A degree that does not divide, or slots that cannot hold the experts.
        """
        layout = self.layout(ranks)
        layers, experts, choices = sizes_LEK
        plan = Plan.contiguous(
            layers=layers,
            experts=experts,
            choices=choices,
            ep=layout.ep,
            groups=layout.groups,
            slots_per_rank=slots_per_rank,
            layer_ids=layer_ids,
        )
        return self.put_into(plan)

    def put_into(self, plan: Plan) -> Plan:
        """Change a plan's degrees to those that are asked for.

        Its slots stay, so `ep` is the plan's.

        More ranks than it had stand on the GPUs from 0 on.

        Raises
        ------
        ValueError
            A degree that does not divide the plan's ranks.
        """
        changes = _as_fields({name: value for name, value in self.given.items() if name != "ep"})
        if not changes:
            return plan
        pp, etp = (changes.get(name, getattr(plan, name)) for name in ("pp", "etp"))
        ranks = plan.groups * plan.ep * pp * etp
        gpus = plan.gpu_of_rank if ranks == plan.ranks else tuple(range(ranks))
        return plan.with_(**changes, gpu_of_rank=gpus)

    def sources(self, ranks: int) -> int:
        """Data-parallel ranks that so many GPUs make, at least one: those that draw tokens."""
        together = (self.tp or 1) * (self.cp or 1) * (self.pp or 1)
        return max(ranks // together, 1)


def _as_fields(given: dict[str, int]) -> dict[str, int]:
    return {"virtual" if name == "vpp" else name: value for name, value in given.items()}
