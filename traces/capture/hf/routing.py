"""`capture_routing`: hooks on a model that record its routing in every forward pass while they are there.

Axes: B row of the batch, Q query position, T token, L MoE layer, E expert, K choice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from moecast.errors import MoecastError
from moecast.traces import RoutingTrace, TraceMeta, TraceWriter, check_target
from moecast.traces.capture.hf.batch import Batch, forward_signature, read_batch
from moecast.traces.capture.hf.choices import gather
from moecast.traces.capture.hf.describe import describe, find_adapters
from moecast.traces.capture.hf.layers import Choices, MoeLayer, find_layers
from moecast.traces.capture.hf.sequences import Placed, SequenceBook

SHARD_TOKENS = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is recorded besides the choices, and how; `capture_routing` explains each."""

    weights: bool = False
    token_ids: bool = True
    end_ids: Collection[int] | None = None
    source_rank: int | None = None
    shard_tokens: int = SHARD_TOKENS
    name: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""


class RoutingCapture:
    """Records the routing of a model while it is open, in a `with` statement.

    `capture_routing` makes one.

    Attributes
    ----------
    topic
        What sequences that start from now on are about: a name, a name per row of the batch, or
        None.
    steps, n_tokens
        Forward passes seen, and tokens recorded in them.
    meta
        What the trace says about itself; None before the first pass.
    """

    meta: TraceMeta | None

    def __init__(
        self, model: nn.Module, out: str | Path, options: Options, *, topic: str | Sequence[str | None] | None
    ) -> None:
        self.topic, self.steps, self.meta = topic, 0, None
        self._out, self._model, self._options = Path(out), _root(model), options
        self._layers = find_layers(self._model)
        self._adapters = find_adapters(model)
        self._autocast: str | None = None
        self._signature = forward_signature(self._model)
        ends = _end_ids(self._model) if options.end_ids is None else frozenset(options.end_ids)
        self._book = SequenceBook(end_ids=ends)
        self._topics: list[str] = []
        self._batch: Batch | None = None
        self._heard: dict[int, Choices] = {}
        self._hooks: list[Any] = []
        self._stance: Any = None
        self._writer: TraceWriter | None = None
        self._keeps_ids = options.token_ids
        check_target(self._out)

    @property
    def n_tokens(self) -> int:
        """Tokens recorded so far."""
        return self._writer.n_tokens if self._writer else 0

    def __enter__(self) -> RoutingCapture:
        # Compiled code was traced without the hooks and would run past them.
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        self._hooks = [
            self._model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self._model.register_forward_hook(self._end, with_kwargs=True),
        ]
        for index, layer in enumerate(self._layers):
            self._hooks.extend(self._listen(index, layer))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._stance.__exit__(kind, error, trace)
        self._book.forget()
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)
        elif kind is None:
            rule = "the model made no forward pass while it was open; is it the model that was run?"
            raise MoecastError(rule, field="capture", value=type(self._model).__name__)

    def _listen(self, index: int, layer: MoeLayer) -> list[Any]:
        """Keep what a layer tells, on its device and without waiting for it, if a pass of the model is under way."""

        def hear(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any = None) -> None:
            if self._batch is None:  # gradient checkpointing runs layers again in the backward pass
                return
            if index in self._heard:
                rule = "ran twice in one forward pass, which a trace has no place for"
                raise MoecastError(rule, field=layer.name)
            index_TK, weights_TK = layer.tell(module, args, kwargs, output)
            self._autocast = _autocast(index_TK.device.type)
            self._heard[index] = (index_TK.detach(), weights_TK.detach())

        if layer.heard_at == "experts":
            return [module.register_forward_pre_hook(hear, with_kwargs=True) for module in layer.modules]
        return [module.register_forward_hook(hear, with_kwargs=True) for module in layer.modules]

    def _begin(self, _model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._heard = {}  # a pass that failed has left its own
        self._batch = read_batch(self._signature, args, kwargs)

    def _end(self, model: nn.Module, _args: object, _kwargs: object, output: Any) -> None:
        batch, heard = self._batch, self._heard
        self._batch, self._heard = None, {}
        if batch is None:
            return
        told = self._told(batch, heard)
        topics = [self.topic] if self.topic is None or isinstance(self.topic, str) else self.topic
        placed, after = self._book.place(batch, topics=[self._number(t) for t in topics], training=model.training)
        self._record(placed, told)
        self._book.keep(placed, after, _cache_of(output) or batch.cache)
        self.steps += 1

    def _told(self, batch: Batch, heard: Mapping[int, Choices]) -> list[Choices]:
        """What all layers told in one pass, in order."""
        shapes = ((batch.rows * batch.queries,), (batch.rows, batch.queries))
        for index, layer in enumerate(self._layers):
            if index not in heard:
                rule = (
                    "was not heard: it was skipped, or a kernel runs in its place "
                    "(load without use_kernels; MXFP4 with dequantize=True)"
                )
                raise MoecastError(rule, field=layer.name)
            if (shape := tuple(heard[index][0].shape))[:-1] not in shapes:
                rule = f"told choices of shape {shape} for {batch.rows} × {batch.queries} tokens"
                raise MoecastError(rule, field=layer.name)
        return [heard[index] for index in range(len(self._layers))]

    def _record(self, placed: Placed, told: Sequence[Choices]) -> None:
        options, count = self._options, len(placed.sequence_T)
        experts_TLK, weights_TLK = gather(self._layers, told, placed.kept_BQ.ravel(), weights=options.weights)
        writer = self._writer or self._open(experts_TLK.shape[2], ids=placed.token_id_T is not None)
        if self._keeps_ids and placed.token_id_T is None:
            rule = "this pass got embeddings, earlier ones ids; ask for no ids with token_ids=False"
            raise MoecastError(rule, field="inputs_embeds")
        writer.append(
            RoutingTrace(
                meta=writer.meta,
                experts_TLK=experts_TLK,
                sequence_T=placed.sequence_T.astype(np.uint32),
                position_T=placed.position_T.astype(np.uint32),
                phase_T=np.full(count, placed.phase, np.uint8),
                topics=tuple(self._topics),
                topic_T=placed.topic_T.astype(np.int16),
                step_T=np.full(count, self.steps, np.uint32),
                source_rank_T=None if options.source_rank is None else np.full(count, options.source_rank, np.uint16),
                token_id_T=placed.token_id_T.astype(np.int32)
                if self._keeps_ids and placed.token_id_T is not None
                else None,
                weights_TLK=weights_TLK,
            )
        )

    def _open(self, choices: int, *, ids: bool) -> TraceWriter:
        """Begin the trace: K, and whether there are ids, is known from the first pass on."""
        options = self._options
        self._keeps_ids = ids and options.token_ids
        self.meta = describe(
            self._model,
            self._layers,
            choices,
            name=options.name,
            adapters=self._adapters,
            source={"autocast": self._autocast} | dict(options.source),
            notes=options.notes,
        )
        self._writer = TraceWriter(self._out, self.meta, shard_tokens=options.shard_tokens)
        return self._writer

    def _number(self, topic: str | None) -> int:
        if topic is None:
            return -1
        if topic not in self._topics:
            self._topics.append(topic)
        return self._topics.index(topic)


def capture_routing(
    model: nn.Module,
    out: str | Path,
    *,
    topic: str | Sequence[str | None] | None = None,
    weights: bool = False,
    token_ids: bool = True,
    end_ids: Collection[int] | None = None,
    source_rank: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    name: str | None = None,
    source: Mapping[str, Any] | None = None,
    notes: str = "",
) -> RoutingCapture:
    """Record which experts each token chooses in every forward pass of a Hugging Face model, `generate`'s included.

    Use it in a `with` statement. Padding is not recorded, nor what `generate` feeds to rows that
    have ended. Compiled parts of the model run uncompiled meanwhile.

    Parameters
    ----------
    model
        A transformers model, or what wraps one and calls it (DistributedDataParallel,
        torch.compile, PEFT's models).
    out
        A new folder; shards in it are complete as soon as they have their names. A name ending in
        `.parquet` makes one file, which is there only when the capture ends well.
    topic
        What the text is about; may be set anew between passes (`routing.topic = "law"`), or be a
        list, a name per row.
    weights
        Keep the gate weights.
    token_ids
        Keep the vocabulary ids. Say False when some passes get embeddings and others ids.
    end_ids
        Ids that `generate` feeds to rows that have ended until the whole batch has: they are not
        recorded in decode. By default the end-of-sequence and padding ids of the model's generation
        config; () records every token.
    source_rank
        The data-parallel rank of this process. Every rank writes a folder of its own.
    shard_tokens
        Tokens per shard: what a kill can cost.
    name, source, notes
        What the trace is to say of the model, of where it ran, and besides; by default the name it
        was loaded by, and the software and hardware found.

    Raises
    ------
    MoecastError
        The model has no MoE layers that can be heard, or `out` cannot be written; later, when a
        pass cannot be recorded truly (beam search, assisted decoding), from inside that pass.
    """
    options = Options(
        weights=weights,
        token_ids=token_ids,
        end_ids=end_ids,
        source_rank=source_rank,
        shard_tokens=shard_tokens,
        name=name,
        source=source or {},
        notes=notes,
    )
    return RoutingCapture(model, out, options, topic=topic)


def _root(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, out of what may wrap it."""
    if isinstance(model, nn.DataParallel):
        raise MoecastError("its threads would mix; use a process per GPU", field="model", value="DataParallel")
    found = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if found is None:
        raise MoecastError("is not a transformers model", field="model", value=type(model).__name__)
    if any(p.is_meta for p in found.parameters()) and not any(hasattr(m, "_hf_hook") for m in found.modules()):
        rule = "has weights on the meta device, which holds nothing: load them first"
        raise MoecastError(rule, field="model", value=type(found).__name__)
    if getattr(found.config, "is_encoder_decoder", False):
        rule = "is an encoder-decoder, whose two streams of tokens a trace has no place for"
        raise MoecastError(rule, field="model", value=type(found).__name__)
    return found


def _autocast(device: str) -> str | None:
    """The element type that mixed precision computes in, where it is on."""
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.") if torch.is_autocast_enabled(device) else None


def _end_ids(model: PreTrainedModel) -> frozenset[int]:
    config = getattr(model, "generation_config", None)
    ends = [getattr(config, name, None) for name in ("eos_token_id", "pad_token_id")]
    return frozenset(i for end in ends if end is not None for i in (end if isinstance(end, list) else [end]))


def _cache_of(output: Any) -> Cache | None:
    """The cache that a forward pass returned, if any."""
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    return next((part for part in parts if isinstance(part, Cache)), None)
