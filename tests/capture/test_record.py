"""What is captured is what the router chose: in prefill, in decode, and on text that training never read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from moecast.errors import MoecastError
from moecast.traces import PHASES, RoutingTrace, TraceMeta
from moecast.traces.capture.own.moe import Router
from moecast.traces.capture.own.record import CaptureConfig, Prompt, RouterTap, capture, cut, generate, prefill
from moecast.traces.capture.own.run import SIZES
from moecast.traces.capture.own.tokens import Tokens
from moecast.traces.capture.own.train import Trained

CONFIG = SIZES["tiny"].capture


@pytest.fixture(scope="module")
def trace(trained: Trained, tokens: Tokens, meta: TraceMeta) -> RoutingTrace:
    return capture(trained.model, tokens, CONFIG, meta)


def test_captured_choices_are_the_top_of_recomputed_logits(trained: Trained, tokens: Tokens) -> None:
    inputs: list[torch.Tensor] = []
    routers = [module for module in trained.model.modules() if isinstance(module, Router)]
    hooks = [router.register_forward_hook(lambda _m, given, _o: inputs.append(given[0])) for router in routers]
    ids = torch.from_numpy(tokens.held_out["code"][:60]).long()[None]
    with RouterTap(trained.model) as tap, torch.no_grad():
        trained.model(ids)
    for hook in hooks:
        hook.remove()
    experts_TLK = tap.take()
    for layer, (router, x_TH) in enumerate(zip(routers, inputs, strict=True)):
        logits_TE = (x_TH @ router.weight_EH.T).detach().numpy()
        assert np.array_equal(experts_TLK[:, layer], np.argsort(-logits_TE, axis=1)[:, :2])


def test_a_closed_tap_hears_nothing(trained: Trained) -> None:
    tap = RouterTap(trained.model)
    with tap:
        pass
    trained.model(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="0 routers"):
        tap.take()


def test_decode_routes_as_prefill_does_of_the_same_tokens(trained: Trained, tokens: Tokens, meta: TraceMeta) -> None:
    prompts, _ = cut(tokens, CONFIG)
    ids_BQ, experts_BQLK = generate(trained.model, prompts, CONFIG, seed=(7,))
    whole = [Prompt(topic=p.topic, ids=np.concatenate([p.ids, ids])) for p, ids in zip(prompts, ids_BQ, strict=True)]
    again = prefill(trained.model, whole, pass_tokens=64, meta=meta, topics=tokens.topics)
    after = np.concatenate(
        [np.arange(len(text.ids)) >= len(prompt.ids) for text, prompt in zip(whole, prompts, strict=True)]
    )
    # Sums run in another order over the cache: a near tie may fall the other way, nothing else may.
    agree = again.experts_TLK[after].reshape(experts_BQLK.shape) == experts_BQLK
    assert agree.mean() > 0.99


def test_padding_changes_no_routing(trained: Trained, tokens: Tokens, meta: TraceMeta) -> None:
    _, texts = cut(tokens, CONFIG)
    together = prefill(trained.model, texts, pass_tokens=1000, meta=meta, topics=tokens.topics)
    alone = prefill(trained.model, texts, pass_tokens=1, meta=meta, topics=tokens.topics)
    assert (together.experts_TLK == alone.experts_TLK).mean() > 0.99


def test_rows_are_whole_sequences_with_steps_and_topics(trace: RoutingTrace) -> None:
    decode = trace.select(trace.phase_T == PHASES.index("decode"))
    first = trace.select(trace.phase_T == PHASES.index("prefill"))
    assert not set(decode.sequence_T) & set(first.sequence_T)
    for part in (first, decode):
        assert np.all(np.diff(part.sequence_T.astype(int)) >= 0)
        new = np.flatnonzero(np.diff(part.sequence_T)) + 1
        for rows in np.split(np.arange(part.n_tokens), new):
            assert np.all(np.diff(part.position_T[rows].astype(int)) == 1)
            assert len(set(part.topic_T[rows])) == 1
    assert decode.n_tokens == CONFIG.decode_sequences * CONFIG.decode_tokens
    _, together = np.unique(decode.step_T, return_counts=True)
    assert set(together) == {CONFIG.decode_batch}
    assert decode.step_T.min() == first.step_T.max() + 1


def test_half_of_the_decode_rows_are_half_of_the_sequences(trace: RoutingTrace) -> None:
    halves = [set(part.sequence_T) for part in trace.select(trace.phase_T == PHASES.index("decode")).split(0.5)]
    assert len(halves[0]) == len(halves[1]) == CONFIG.decode_sequences // 2
    assert not halves[0] & halves[1]


def test_the_same_seed_captures_the_same_trace(
    trace: RoutingTrace, trained: Trained, tokens: Tokens, meta: TraceMeta
) -> None:
    assert capture(trained.model, tokens, CONFIG, meta).content_hash() == trace.content_hash()
    other = capture(trained.model, tokens, dataclasses.replace(CONFIG, seed=1), meta)
    assert other.content_hash() != trace.content_hash()


def test_too_little_held_out_text_is_refused(tokens: Tokens) -> None:
    with pytest.raises(MoecastError, match="held-out tokens; ask for fewer"):
        cut(tokens, CaptureConfig())
