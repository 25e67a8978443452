"""Options of a pool of GPUs that computes prompts only, and section `prefill` of a question file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.cli.asked import Asked
    from moecast.cli.inputs import Inputs
    from moecast.sim.serving import PrefillPool, Serving

_SAME = "as of the others"

PrefillGpus = Annotated[
    int | None,
    typer.Option(
        "--prefill-gpus",
        min=1,
        help="The cluster's last so many GPUs compute prompts only, the others answer, and keys move between them.",
        show_default="none: all do both",
    ),
]
PrefillTp = Annotated[int | None, typer.Option("--prefill-tp", min=1, help="Their --tp.", show_default=_SAME)]
PrefillEp = Annotated[
    int | None, typer.Option("--prefill-ep", min=1, help="Their --ep: of each instance.", show_default="all of them")
]
PrefillEtp = Annotated[int | None, typer.Option("--prefill-etp", min=1, help="Their --etp.", show_default=_SAME)]
PrefillBatched = Annotated[
    int | None,
    typer.Option("--prefill-max-batched-tokens", min=1, help="Of their iterations.", show_default=_SAME),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillAsked:
    """What is asked of the GPUs that compute prompts only; None: not asked."""

    gpus: PrefillGpus = None
    tp: PrefillTp = None
    ep: PrefillEp = None
    etp: PrefillEtp = None
    max_batched_tokens: PrefillBatched = None

    def __post_init__(self) -> None:
        """Refuse what says how GPUs are laid out that nobody asked for."""
        if self.gpus is not None:
            return
        for name in ("tp", "ep", "etp", "max_batched_tokens"):
            if (value := getattr(self, name)) is not None:
                field = f"--prefill-{name.replace('_', '-')}"
                raise MoecastError(
                    "is of GPUs that compute prompts only: give --prefill-gpus", field=field, value=value
                )

    def check_degrees(self, asked: Asked) -> None:
        """Refuse degrees that do not go with so many GPUs, before anything is read.

        Raises
        ------
        MoecastError
            One that does not divide them.
        """
        for name in ("tp", "ep", "etp"):
            own = getattr(self, name)
            value = own if own is not None or name == "ep" else getattr(asked, name)
            if self.gpus is None or value is None or self.gpus % value == 0:
                continue
            same = "" if own is not None else f"; it is --{name} where nobody says another"
            rule = f"does not divide the {self.gpus} GPUs of --prefill-gpus{same}"
            raise MoecastError(rule, field=f"--prefill-{name}", value=value)

    def gpus_left(self, asked: Asked, inputs: Inputs) -> int | None:
        """GPUs that answer; None: all of them, as nothing was asked.

        Raises
        ------
        MoecastError
            None is left, or a degree does not divide those that are.
        """
        if self.gpus is None:
            return None
        left = inputs.cluster.n_gpus - self.gpus
        if left < 1:
            rule = f"the cluster has {inputs.cluster.n_gpus} GPUs: none is left to answer"
            raise MoecastError(rule, field="--prefill-gpus", value=self.gpus)
        for name in ("tp", "dp", "cp", "ep", "etp"):
            if (value := getattr(asked, name)) is not None and left % value:
                rule = f"does not divide the {left} GPUs that --prefill-gpus leaves to answer"
                raise MoecastError(rule, field=f"--{name}", value=value)
        return left

    def pool(self, asked: Asked, inputs: Inputs, serving: Serving) -> PrefillPool | None:
        """The pool of the cluster's last GPUs, laid out contiguously; `serving`: of the others.

        Raises
        ------
        MoecastError
            A degree that does not divide its GPUs.
        """
        from moecast.cli.inputs import read_or_make_plan
        from moecast.sim.serving import PrefillPool

        if self.gpus is None:
            return None
        same = {name: getattr(self, name) or getattr(asked, name) for name in ("tp", "etp")}
        own = asked.with_(plan=None, dp=None, ep=self.ep, **same)
        try:
            plan = read_or_make_plan(own, inputs, gpus=self.gpus)
        except MoecastError as error:
            raise MoecastError(f"of the GPUs that compute prompts: {error}") from error
        last = inputs.cluster.n_gpus
        if self.max_batched_tokens is not None:
            serving = replace(serving, max_batched_tokens=self.max_batched_tokens)
        return PrefillPool(plan=plan.with_(gpu_of_rank=tuple(range(last - self.gpus, last))), serving=serving)
