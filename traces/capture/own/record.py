"""Running a trained model on held-out text with its router hooked, in prefill and in decode.

Prefill feeds whole sequences, several to a forward pass. Decode really generates: prompts of
held-out text go through once to fill the KV cache, then each forward pass feeds one token to each
sequence and samples the next. Only tokens that are held-out text (prefill) or were generated
(decode) are recorded, prompts are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from moecast.errors import MoecastError
from moecast.traces import NO_CHOICE, PHASES, RoutingTrace, TraceMeta, concatenate
from moecast.traces.capture.own.model import LanguageModel
from moecast.traces.capture.own.moe import Router
from moecast.traces.capture.own.policies import NONE, Routed
from moecast.traces.capture.own.tokenizer import START
from moecast.traces.capture.own.tokens import Ids, Tokens

Experts = npt.NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureConfig:
    """How much text is run, and how it is cut: lengths are lognormal around their median, cut off at both ends.

    No sequence is longer than the rows that training read: beyond them rotary positions are new to
    the model.
    """

    prefill_tokens: int = 130_000
    prefill_length: tuple[int, int, int] = (48, 128, 256)  # shortest, median, longest
    pass_tokens: int = 4096
    decode_sequences: int = 2160
    decode_tokens: int = 24
    decode_batch: int = 240
    prompt_length: tuple[int, int, int] = (16, 48, 160)
    spread: float = 0.6
    temperature: float = 0.8
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A stretch of held-out text, opening token first."""

    topic: int
    ids: Ids


class RouterTap:
    """Hears every router's choices while it is open, in a `with` statement; `take` returns those since the last one."""

    def __init__(self, model: nn.Module) -> None:
        self._routers = [module for module in model.modules() if isinstance(module, Router)]
        self._heard: list[torch.Tensor] = []
        self._most = max(r.policy.most_choices(len(r.bias_E), r.choices) for r in self._routers)
        self._hooks: list[Any] = []

    def __enter__(self) -> RouterTap:
        self._hooks = [router.register_forward_hook(self._hear) for router in self._routers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hear(self, _router: nn.Module, _inputs: object, routed: Routed) -> None:
        expert_TK = routed.expert_TK.detach()
        self._heard.append(functional.pad(expert_TK, (0, self._most - expert_TK.shape[1]), value=NONE))

    def take(self) -> Experts:
        """Choices [T, L, K] of one forward pass, best first, for every token fed, padding included.

        K is the most that the routers' policy can choose; empty choices are `NO_CHOICE`.
        """
        heard, self._heard = self._heard, []
        if len(heard) != len(self._routers):
            raise ValueError(f"{len(heard)} routers heard, {len(self._routers)} layers: take after every forward pass")
        experts_TLK = torch.stack(heard, dim=1).cpu().numpy()
        return np.where(experts_TLK == NONE, NO_CHOICE, experts_TLK).astype(np.uint16)


def capture(model: LanguageModel, tokens: Tokens, config: CaptureConfig, meta: TraceMeta) -> RoutingTrace:
    """Run both phases on held-out text that no other sequence of the trace reads, prefill first.

    K of `meta` is the most that the model's policy can choose; K of the trace is the most that a
    token did choose.

    Raises
    ------
    MoecastError
        The held-out text is too short.
    """
    prompts, texts = cut(tokens, config)
    recorded = prefill(model, texts, pass_tokens=config.pass_tokens, meta=meta, topics=tokens.topics, seed=config.seed)
    if not prompts:
        return _trimmed(recorded)
    generated = decode(model, prompts, config, meta=meta, topics=tokens.topics)
    assert recorded.step_T is not None
    assert generated.step_T is not None
    generated = dataclasses.replace(
        generated,
        sequence_T=(generated.sequence_T + len(texts)).astype(np.uint32),
        step_T=(generated.step_T + int(recorded.step_T[-1]) + 1).astype(np.uint32),
    )
    return _trimmed(concatenate([recorded, generated]))


def cut(tokens: Tokens, config: CaptureConfig) -> tuple[list[Prompt], list[Prompt]]:
    """Cut the held-out streams into decode prompts and prefill texts, each kind in an order that mixes topics.

    Raises
    ------
    MoecastError
        A topic's held-out text is too short for its share.
    """
    rng = np.random.default_rng([config.seed, 1])
    prompts: list[Prompt] = []
    texts: list[Prompt] = []
    for index, topic in enumerate(tokens.topics):
        stream, start = tokens.held_out[topic], 0
        wanted = config.prefill_tokens // len(tokens.topics)
        counts = config.decode_sequences // len(tokens.topics)
        lengths = _lengths(rng, counts, config.prompt_length, config.spread)
        for kind, kind_lengths in ((prompts, lengths), (texts, _fill(rng, wanted, config))):
            for length in kind_lengths:
                if start + length - 1 > len(stream):
                    rule = f"only {len(stream)} held-out tokens; ask for fewer or give more text"
                    raise MoecastError(rule, field="topic", value=topic)
                ids = np.concatenate([[START], stream[start : start + length - 1]]).astype(np.int32)
                kind.append(Prompt(topic=index, ids=ids))
                start += length - 1
    return [prompts[i] for i in rng.permutation(len(prompts))], [texts[i] for i in rng.permutation(len(texts))]


@torch.no_grad()
def prefill(
    model: LanguageModel,
    texts: Sequence[Prompt],
    *,
    pass_tokens: int,
    meta: TraceMeta,
    topics: tuple[str, ...],
    seed: int = 0,
) -> RoutingTrace:
    """Feed whole sequences, as many to a forward pass as stay within `pass_tokens`; record every token."""
    experts, steps = [], []
    with RouterTap(model) as tap:
        for step, group in enumerate(_passes(texts, pass_tokens)):
            padded, valid_BQ = _padded(model, group)
            model(padded, valid_BQ=valid_BQ, seed=(seed, 1, step))
            heard = tap.take().reshape(*padded.shape, meta.layers, meta.choices)
            experts += [heard[row, : len(text.ids)] for row, text in enumerate(group)]
            steps += [step] * len(group)
    return _trace(
        meta,
        "prefill",
        topics,
        prompts=texts,
        positions=[np.arange(len(text.ids)) for text in texts],
        ids=[text.ids for text in texts],
        steps=[np.full(len(text.ids), step) for text, step in zip(texts, steps, strict=True)],
        experts=experts,
    )


@torch.no_grad()
def decode(
    model: LanguageModel, prompts: Sequence[Prompt], config: CaptureConfig, *, meta: TraceMeta, topics: tuple[str, ...]
) -> RoutingTrace:
    """Generate `decode_tokens` tokens after each prompt; rows go sequence by sequence, steps tell who ran together."""
    ids, experts, steps = [], [], []
    for index, start in enumerate(range(0, len(prompts), config.decode_batch)):
        group = prompts[start : start + config.decode_batch]
        ids_BQ, experts_BQLK = generate(model, group, config, seed=(config.seed, 2, index))
        ids += list(ids_BQ)
        experts += list(experts_BQLK)
        steps += [index * config.decode_tokens + np.arange(config.decode_tokens)] * len(group)
    positions = [len(prompt.ids) + np.arange(config.decode_tokens) for prompt in prompts]
    return _trace(meta, "decode", topics, prompts=prompts, positions=positions, ids=ids, steps=steps, experts=experts)


@torch.no_grad()
def generate(
    model: LanguageModel, group: Sequence[Prompt], config: CaptureConfig, *, seed: tuple[int, ...]
) -> tuple[Ids, Experts]:
    """Sample from the model with a KV cache: ids [B, Q] and their routing [B, Q, L, K] for Q generated tokens."""
    rng = np.random.default_rng(seed)
    padded, valid_BQ = _padded(model, group)
    length_B = torch.tensor([len(prompt.ids) for prompt in group], device=padded.device)
    cache = model.new_cache(len(group), padded.shape[1] + config.decode_tokens)
    position_BQ = torch.arange(padded.shape[1], device=padded.device).expand_as(padded)
    hidden_BQH, _ = model(padded, position_BQ, cache, valid_BQ=valid_BQ, seed=(*seed, 0))
    hidden_BH = hidden_BQH[torch.arange(len(group), device=padded.device), length_B - 1]
    ids, experts = [], []
    with RouterTap(model) as tap:
        for turn in range(config.decode_tokens):
            noise_BV = torch.from_numpy(rng.gumbel(size=(len(group), model.config.vocabulary))).to(hidden_BH)
            id_B = (model.logits(hidden_BH) / config.temperature + noise_BV).argmax(-1)
            hidden_BQH, _ = model(id_B[:, None], (length_B + turn)[:, None], cache, seed=(*seed, 1 + turn))
            hidden_BH = hidden_BQH[:, 0]
            ids.append(id_B.cpu().numpy())
            experts.append(tap.take())
    return np.stack(ids, axis=1).astype(np.int32), np.stack(experts, axis=1)


def _lengths(rng: np.random.Generator, count: int, length: tuple[int, int, int], spread: float) -> list[int]:
    shortest, median, longest = length
    drawn = np.exp(rng.normal(np.log(median), spread, count))
    return [int(value) for value in np.clip(np.round(drawn), shortest, longest)]


def _fill(rng: np.random.Generator, wanted: int, config: CaptureConfig) -> list[int]:
    """Lengths that together reach `wanted` tokens."""
    lengths = _lengths(rng, wanted // config.prefill_length[0] + 1, config.prefill_length, config.spread)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), wanted)) + 1] if wanted else []


def _passes(texts: Sequence[Prompt], pass_tokens: int) -> Iterator[list[Prompt]]:
    group: list[Prompt] = []
    for text in texts:
        if group and sum(len(other.ids) for other in group) + len(text.ids) > pass_tokens:
            yield group
            group = []
        group.append(text)
    if group:
        yield group


def _padded(model: LanguageModel, group: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, Q], padded on the right, where no earlier token can see it, and False where they are padding."""
    ids_BQ = torch.full((len(group), max(len(prompt.ids) for prompt in group)), START)
    valid_BQ = torch.zeros(ids_BQ.shape, dtype=torch.bool)
    for row, prompt in enumerate(group):
        ids_BQ[row, : len(prompt.ids)] = torch.from_numpy(prompt.ids)
        valid_BQ[row, : len(prompt.ids)] = True
    device = model.embedding.weight.device
    return ids_BQ.long().to(device), valid_BQ.to(device)


def _trimmed(trace: RoutingTrace) -> RoutingTrace:
    """The trace without choices that no token made: K is what it claims to be."""
    used_K = np.any(trace.experts_TLK != NO_CHOICE, axis=(0, 1))
    most = int(np.flatnonzero(used_K).max(initial=0)) + 1
    config = trace.meta.config
    if config and "num_experts_per_tok" in config:
        config = {**config, "num_experts_per_tok": most}
    meta = dataclasses.replace(trace.meta, choices=most, config=config)
    return dataclasses.replace(trace, meta=meta, experts_TLK=trace.experts_TLK[:, :, :most])


def _trace(
    meta: TraceMeta,
    phase: str,
    topics: tuple[str, ...],
    *,
    prompts: Sequence[Prompt],
    positions: list[npt.NDArray[Any]],
    ids: list[Ids],
    steps: list[npt.NDArray[Any]],
    experts: list[Experts],
) -> RoutingTrace:
    """Join what was recorded of each sequence; sequences are numbered from 0."""
    sizes = [len(rows) for rows in positions]
    return RoutingTrace(
        meta=meta,
        experts_TLK=np.concatenate(experts),
        sequence_T=np.repeat(np.arange(len(prompts)), sizes).astype(np.uint32),
        position_T=np.concatenate(positions).astype(np.uint32),
        phase_T=np.full(sum(sizes), PHASES.index(phase), np.uint8),
        topics=topics,
        topic_T=np.repeat([prompt.topic for prompt in prompts], sizes).astype(np.int16),
        step_T=np.concatenate(steps).astype(np.uint32),
        token_id_T=np.concatenate(ids).astype(np.int32),
    )
