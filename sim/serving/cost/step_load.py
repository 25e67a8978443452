"""What each attention-DP rank has to do in one iteration, in the few numbers that its cost depends on.

Axes: G DP rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.serving.batchers import Scheduled

Int = npt.NDArray[np.int64]

ROWS = ("prompt_tokens_G", "prompt_keys_G", "prompts_G", "decodes_G", "decode_keys_G")
"""Numbers of a rank; see `StepLoad`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepLoad:
    """Work of one iteration of ranks that step together.

    Parameters
    ----------
    prompt_tokens_G, prompt_keys_G
        Tokens of prompts, and keys that they attend to in all, themselves included.
    prompts_G
        Prompts that end, whose logits are wanted.
    decodes_G, decode_keys_G
        Running sequences that go on by a token, and keys that these attend to in all.
    swapped_blocks
        KV blocks that the rank with the most of them copies to or from its host.
    scheduled_G
        Who is in it, where the cost asks for that.
    """

    prompt_tokens_G: Int
    prompt_keys_G: Int
    prompts_G: Int
    decodes_G: Int
    decode_keys_G: Int
    swapped_blocks: int = 0
    scheduled_G: tuple[Scheduled, ...] = ()

    @classmethod
    def of(cls, numbers_NG: Int, *, swapped_blocks: int = 0, scheduled_G: tuple[Scheduled, ...] = ()) -> StepLoad:
        """Take the numbers of ranks, in the order of `ROWS`."""
        return cls(**dict(zip(ROWS, numbers_NG, strict=True)), swapped_blocks=swapped_blocks, scheduled_G=scheduled_G)

    @property
    def tokens_G(self) -> Int:
        """Tokens of each rank."""
        return self.prompt_tokens_G + self.decodes_G

    @property
    def decodes_only(self) -> bool:
        """Whether no rank has tokens of a prompt."""
        return not self.prompt_tokens_G.any()


def numbers_of(scheduled: Scheduled) -> tuple[int, int, int, int, int]:
    """A rank's numbers, in the order of `ROWS`."""
    if not len(scheduled):
        return 0, 0, 0, scheduled.wasted, scheduled.wasted_context + scheduled.wasted
    decodes = scheduled.decodes
    context, tokens = scheduled.context, scheduled.tokens
    decoding = int(decodes.sum()) + scheduled.wasted
    decode_keys = int(context[decodes].sum()) + scheduled.wasted_context + decoding
    if decoding - scheduled.wasted == len(scheduled):
        return 0, 0, 0, decoding, decode_keys
    prompt, before = tokens[~decodes], context[~decodes]
    keys = int((prompt * before + prompt * (prompt + 1) // 2).sum())
    return int(prompt.sum()), keys, int(scheduled.finishes_prompt.sum()), decoding, decode_keys
