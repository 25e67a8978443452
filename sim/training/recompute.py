"""What is computed again in the backward pass, so that its activations need not be kept.

Source: selective and full recomputation (arXiv 2205.05198), with the modules that Megatron-LM's
`--recompute-modules` names: attention's core (`core_attn`), the activations of experts and MLPs
(`moe_act`, `mlp_act`), the norms (`layernorm`), MLA's way up from latent vectors (`mla_up_proj`),
an MLP (`mlp`), shared experts (`shared_experts`), a whole MoE layer with its dispatch and combine
(`moe`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

MODULES = ("core_attn", "mlp_act", "moe_act", "layernorm", "mla_up_proj", "mlp", "shared_experts", "moe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompute:
    """The modules of each layer that run forward again before their backward pass.

    Parameters
    ----------
    name
        What outputs call it.
    modules
        Which of them; of all layers alike.
    full
        Whether whole layers do, of which only the input is kept.

    Raises
    ------
    ValueError
        There is no such module.
    """

    name: str = "none"
    modules: tuple[str, ...] = ()
    full: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        for module in self.modules:
            if module not in MODULES:
                raise ValueError(f"modules = {module!r}: one of {', '.join(MODULES)}")

    @property
    def repeats_exchange(self) -> bool:
        """Whether dispatch and combine run again too."""
        return self.full or "moe" in self.modules

    def seconds(self, forward_of_module: Mapping[str, Float]) -> Float:
        """Seconds that it adds to a layer's backward pass on each rank.

        Parameters
        ----------
        forward_of_module
            Forward seconds of the layer by module, each second once; names that are none of
            `MODULES` run again only where whole layers do.
        """
        again = [seconds for name, seconds in forward_of_module.items() if self.full or self.covers(name)]
        return np.asarray(sum(again), np.float64)

    def covers(self, name: str) -> bool:
        """Whether a module's tensors are dropped and made again; what a module contains goes with it."""
        return name in self.modules or _CONTAINED.get(name) in self.modules

    def runs_again(self, module: str) -> bool:
        """Whether a module runs again by itself: neither within another that does nor within the whole layer."""
        return not self.full and module in self.modules and _CONTAINED.get(module) not in self.modules

    def kept(self, bytes_of_module: Mapping[str, float]) -> float:
        """Bytes that stay of a layer's activations, of which `input` is what the layer begins with."""
        if self.full:
            return bytes_of_module["input"]
        return sum(size for name, size in bytes_of_module.items() if not self.covers(name))


_CONTAINED: Mapping[str, str] = {"mlp_act": "mlp", "moe_act": "moe"}

NONE = Recompute()
SELECTIVE = Recompute(name="selective", modules=("core_attn", "mlp_act", "moe_act"))
FULL = Recompute(name="full", full=True)
RECOMPUTES: Mapping[str, Recompute] = {choice.name: choice for choice in (NONE, SELECTIVE, FULL)}
