"""The degrees that layouts of serving and of training have alike: who attends with whom, and in how many stages."""

from __future__ import annotations

from dataclasses import dataclass

from moecast.placement.layouts.mappings import CONSECUTIVE, Mapping


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class AttentionDegrees:
    """Ranks that share heads (`tp`), and sequences (`cp`); groups of those (`dp`); pipeline stages (`pp`).

    `mapping`: which GPU each rank stands on.
    """

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1
    mapping: Mapping = CONSECUTIVE

    @property
    def ranks_of_stage(self) -> int:
        """Ranks of a pipeline stage."""
        return self.tp * self.cp * self.dp

    @property
    def gpus(self) -> int:
        """GPUs of all stages."""
        return self.ranks_of_stage * self.pp

    @property
    def gpu_of_rank(self) -> tuple[int, ...]:
        """The GPU of each rank, counted from the first that it has."""
        return self.mapping.gpus or tuple(range(self.gpus))

    @property
    def mapped(self) -> list[str]:
        """What a line about the layout says of where its ranks stand: nothing where they are consecutive."""
        return [] if self.mapping == CONSECUTIVE else [f"ranks {self.mapping.name}"]
