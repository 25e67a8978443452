"""What a forward pass was given: which of its tokens are real, their ids, and the cache they continue.

Axes: B row of the batch, Q query position, V key position, T token.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import Cache

from moecast.errors import MoecastError

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The arguments of one forward pass, read before it runs.

    `past` is how many positions the cache held, padding included.
    """

    rows: int
    queries: int
    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    cache: Cache | None
    past: int

    def real_BQ(self) -> Bools:
        """Which tokens are not padding: where the attention mask lets nobody see a token, it is none."""
        mask = self.attention_mask
        if mask is None:
            return np.ones((self.rows, self.queries), bool)
        if mask.dim() == 2:
            return (mask[:, -self.queries :] != 0).cpu().numpy()
        if self.queries == 1 or mask.shape[3] < self.past + self.queries:
            return np.ones((self.rows, self.queries), bool)
        return _seen(mask, self.rows, self.past, self.queries)

    def past_tokens_B(self) -> Ints:
        """Tokens of each row that the cache already holds, padding left out where a two-dimensional mask tells."""
        mask = self.attention_mask
        if mask is not None and mask.dim() == 2 and mask.shape[1] == self.past + self.queries:
            return (mask[:, : self.past] != 0).sum(1).cpu().numpy()
        return np.full(self.rows, self.past)

    def ids_BQ(self) -> Ints | None:
        """Vocabulary ids, or None where the model was given embeddings."""
        return None if self.input_ids is None else self.input_ids.cpu().numpy()

    def starts_BQ(self) -> Bools | None:
        """Where sequences begin in rows that hold several, one after the other.

        None where each row holds one.

        A row is packed when its position ids begin again at 0, and no mask and no cache are given.
        """
        positions = self.position_ids
        if positions is None or positions.dim() != 2 or self.attention_mask is not None or self.past:
            return None
        starts_BQ = np.broadcast_to((positions == 0).cpu().numpy(), (self.rows, self.queries)).copy()
        starts_BQ[:, 0] = True
        return starts_BQ if starts_BQ[:, 1:].any() else None


def read_batch(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Batch:
    """Read the arguments of a model's `forward`.

    Raises
    ------
    MoecastError
        There are neither ids nor embeddings, or a mask whose padding cannot be told.
    """
    given = signature.bind_partial(*args, **kwargs).arguments
    given = {**given.pop("kwargs", {}), **given}
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    tokens = ids if ids is not None else embeds
    if tokens is None:
        raise MoecastError("the model got neither input_ids nor inputs_embeds", field="capture")
    rows, queries = tokens.shape[:2]
    # By its type: the argument was `past_key_values` before transformers 5.24 and is `cache` since, and a hook
    # hears the name that the caller used.
    cache = next((value for value in given.values() if isinstance(value, Cache)), None)
    return Batch(
        rows=int(rows),
        queries=int(queries),
        input_ids=ids,
        attention_mask=_mask(given.get("attention_mask")),
        position_ids=given.get("position_ids"),
        cache=cache,
        past=_length(cache),
    )


def forward_signature(model: nn.Module) -> inspect.Signature:
    """The parameters of a model's `forward`, as its class declares them."""
    signature = inspect.signature(type(model).forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _mask(mask: Any) -> torch.Tensor | None:
    if isinstance(mask, Mapping):  # one for each kind of attention; the widest sees all keys
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None or (isinstance(mask, torch.Tensor) and mask.dim() in (2, 4)):
        return mask
    rule = "padding cannot be told from it; pass the two-dimensional mask of the tokenizer"
    raise MoecastError(rule, field="attention_mask", value=type(mask).__name__)


def _seen(mask_B1QV: torch.Tensor, rows: int, past: int, queries: int) -> Bools:
    """Keys of this pass that some query at or after them attends to.

    A query of a padding position has nothing to attend to, and some attention code lets it see
    everything, the future too; such rows of the mask say nothing.
    """
    allowed = mask_B1QV if mask_B1QV.dtype == torch.bool else mask_B1QV >= 0
    allowed_BQV = allowed[:, 0].expand(rows, -1, -1).cpu().numpy()
    future_QV = np.triu(np.ones(allowed_BQV.shape[1:], bool), k=past + 1)
    telling_BQ1 = ~(allowed_BQV & future_QV).any(axis=2, keepdims=True)
    return np.asarray((allowed_BQV & telling_BQ1).any(axis=1))[:, past : past + queries]


def _length(cache: Cache | None) -> int:
    return 0 if cache is None else int(cache.get_seq_length())
