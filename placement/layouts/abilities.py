"""What of a layout a serving engine has an option for.

Sources: SGLang's `server_args.py` (experts' width is cut by `tp_size / ep_size`; with any all-to-all backend `ep_size`
is `tp_size`; two batches want such a backend), vLLM's `vllm.config` (two batches want one of DeepEP's), TensorRT-LLM's
"Parallelism in TensorRT LLM"; read on 2026-11-28 and 29. None was tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_layout import ServingLayout

ENGINES = ("sglang", "vllm", "trtllm")
"""Serving engines whose options are known."""


def no_option_for(engine: str, layout: ServingLayout) -> tuple[str, ...]:
    """What of a layout an engine cannot be asked for, in words; nothing where it is none of `ENGINES`."""
    if engine not in ENGINES:
        return ()
    sent = layout.ep > 1 and layout.dispatch not in (None, "all_gather")
    cut = layout.ep > 1 and layout.etp > 1
    halves = {"sglang": sent, "vllm": layout.dispatch in ("per_choice", "per_domain"), "trtllm": False}
    told = {
        "CP": layout.cp > 1 and engine != "vllm",
        "experts by EP and ETP at once": cut and (engine == "vllm" or (engine == "sglang" and sent)),
        "attention by TP and DP at once": engine == "trtllm" and layout.tp > 1 and layout.dp > 1,
        "shared experts beside dispatch: it does so by itself or not": layout.schedule == "shared-beside",
        "two batches at once": layout.schedule == "two-batch" and not halves[engine],
    }
    return tuple(words for words, missing in told.items() if missing)
