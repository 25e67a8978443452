"""The degrees that layouts of serving and of training have alike: who attends with whom, and in how many stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class AttentionDegrees:
    """Ranks that share heads (`tp`), and sequences (`cp`); groups of those (`dp`); pipeline stages (`pp`)."""

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1

    @property
    def ranks_of_stage(self) -> int:
        """Ranks of a pipeline stage."""
        return self.tp * self.cp * self.dp

    @property
    def gpus(self) -> int:
        """GPUs of all stages."""
        return self.ranks_of_stage * self.pp
