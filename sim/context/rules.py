"""What context parallelism runs and what it refuses, in one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecast.errors import MoecastError
from moecast.sim.attention_shape import AttentionShape, LinearAttention
from moecast.sim.parts import PARTS_OF, Part

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan


def cuts_prompts(plan: Plan, phase: str) -> bool:
    """Whether ranks share the sequences of prompts, so that keys (or queries) travel.

    Caches in decode are dealt out.

    `phase`: whose kernels run, or ``train``.
    """
    return plan.cp > 1 and phase != Part.DECODE


def check_context(plan: Plan, model: ModelShape, phase: str) -> None:
    """Refuse layers that ranks cannot share sequences of, and ways that do not go together.

    `phase`: whose kernels run, or ``train``.

    Raises
    ------
    MoecastError
        Names the field.
    """
    if plan.cp == 1:
        return
    mixers = [model.mixer_of(layer) for layer in range(model.n_layers)]
    if any(isinstance(mixer, LinearAttention) for mixer in mixers):
        rule = "linear attention would hand its state from rank to rank, which is not simulated: use 1"
        raise MoecastError(rule, field="cp", value=plan.cp)
    if not cuts_prompts(plan, phase):
        return
    chosen = any(isinstance(mixer, AttentionShape) and mixer.sparse_keys for mixer in mixers)
    if chosen and plan.context_exchange != "all-gather":
        rule = f"keys that {model.name} chooses from all others are chosen after an all-gather only"
        raise MoecastError(rule, field="context_exchange", value=plan.context_exchange)
    if plan.context_split == "zeppelin" and plan.context_exchange != "ring":
        raise MoecastError(
            "whole and cut sequences go together in rings only: use --context-exchange ring",
            field="context_split",
            value=plan.context_split,
        )
    if phase == "train" and plan.context_exchange == "token-ring":
        raise MoecastError(
            "TokenRing has no backward pass here: use ring or all-gather", field="context_exchange", value="token-ring"
        )


def check_step(plan: Plan, phase: str) -> None:
    """Refuse a step whose two parts would be cut over ranks in two ways.

    Raises
    ------
    MoecastError
        It is a mixed one.
    """
    if plan.cp > 1 and len(PARTS_OF[phase]) > 1:
        raise MoecastError(
            "prompts and running sequences of one step are not shared by ranks at once: use 1",
            field="cp",
            value=plan.cp,
        )
