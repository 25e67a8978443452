"""Each router policy against brute force on scores small enough to check by eye or by loop.

Axes: T token, E expert, O output of the router, K choice, B row.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from moecast.errors import MoecastError
from moecast.traces.capture.own.policies import NONE, POLICIES, Pass, Policy, Routed, policy_named
from moecast.traces.capture.own.policies.base import balance_loss, balance_loss_per_row
from moecast.traces.capture.own.policies.bias import AuxFree, GroupLimited
from moecast.traces.capture.own.policies.stochastic import Stochastic, symmetric_divergence
from moecast.traces.capture.own.policies.together import Capacity, ExpertChoice, Sinkhorn, potential_E
from moecast.traces.capture.own.policies.varying import NullExperts, TopP

EXPERTS, CHOICES = 16, 4
TRAINING = Pass(rows=4, training=True, seed=(3,))


def scores(tokens: int = 48, outputs: int = EXPERTS, *, seed: int = 0, spread: float = 1.5) -> Tensor:
    """Scores [T, O] with some outputs more popular than others."""
    generator = torch.Generator().manual_seed(seed)
    return spread * (torch.randn(tokens, outputs, generator=generator) + torch.randn(outputs, generator=generator))


def routed(policy: Policy, logits_TO: Tensor, view: Pass = TRAINING, bias_E: Tensor | None = None) -> Routed:
    bias_E = torch.zeros(EXPERTS) if bias_E is None else bias_E
    return policy.route(logits_TO, bias_E, choices=CHOICES, layer=0, view=view)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("training", [True, False])
def test_what_every_policy_promises(policy: Policy, training: bool) -> None:
    logits_TO = scores(outputs=policy.outputs(EXPERTS)).requires_grad_()
    view = dataclasses.replace(TRAINING, training=training)
    weight_TK, expert_TK, penalty = routed(policy, logits_TO, view)
    assert weight_TK.shape == expert_TK.shape
    assert expert_TK.shape[1] <= policy.most_choices(EXPERTS, CHOICES)
    assert int(expert_TK.min()) >= NONE
    assert int(expert_TK.max()) < EXPERTS
    for expert_K in expert_TK:
        chosen = expert_K[expert_K != NONE]
        assert len(chosen.unique()) == len(chosen)
    assert torch.all(weight_TK[expert_TK == NONE] == 0)
    assert torch.all(weight_TK >= 0)
    assert torch.all(weight_TK.sum(-1) <= 1 + 1e-6)
    assert (penalty is not None) == (training and policy.penalty_weight > 0)
    again = routed(policy, logits_TO, view)
    assert torch.equal(again.expert_TK, expert_TK)
    assert policy.summary
    assert policy.source
    assert policy.note(EXPERTS, CHOICES)


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(MoecastError, match=r"policy = .best.: one of none, aux-micro, "):
        policy_named("best")


def test_micro_and_global_balance_differ_where_topics_keep_to_experts() -> None:
    # Two rows, each evenly over its own half of four experts: even over the batch, uneven in each row.
    expert_TK = torch.tensor([[0], [1], [0], [1], [2], [3], [2], [3]])
    probability_TE = torch.tensor([[0.5, 0.5, 0.0, 0.0]] * 4 + [[0.0, 0.0, 0.5, 0.5]] * 4)
    assert balance_loss(expert_TK, probability_TE) == pytest.approx(1.0)
    assert balance_loss_per_row(expert_TK, probability_TE, 2) == pytest.approx(2.0)
    logits_TE = scores()
    rows = [routed(policy_named("aux-global"), part).penalty for part in logits_TE.chunk(4)]
    micro = routed(policy_named("aux-micro"), logits_TE).penalty
    assert micro is not None
    assert micro == pytest.approx(float(torch.stack([row for row in rows if row is not None]).mean()), rel=1e-5)


def test_biases_rise_where_loads_are_low_and_only_choosing_sees_them() -> None:
    policy = AuxFree(rate=0.01)
    bias_E = policy.next_bias(torch.zeros(4), torch.tensor([10, 2, 6, 6]))
    assert bias_E.tolist() == pytest.approx([-0.01, 0.01, 0.0, 0.0])
    logits_TE = scores()
    pushed_E = torch.zeros(EXPERTS)
    pushed_E[5] = 2.0
    weight_TK, expert_TK, _ = routed(policy, logits_TE, bias_E=pushed_E)
    assert torch.all(expert_TK[:, 0] == 5)
    score_TK = logits_TE.sigmoid().gather(1, expert_TK)
    torch.testing.assert_close(weight_TK, score_TK / score_TK.sum(1, keepdim=True))


def test_a_bias_evens_out_loads() -> None:
    policy, bias_E, logits_TE = AuxFree(rate=0.02), torch.zeros(EXPERTS), scores(tokens=400)
    spreads = []
    for _ in range(80):
        load_E = torch.bincount(routed(policy, logits_TE, bias_E=bias_E).expert_TK.flatten(), minlength=EXPERTS)
        spreads.append(float(load_E.double().std()))
        bias_E = policy.next_bias(bias_E, load_E)
    assert spreads[-1] < 0.3 * spreads[0]


@pytest.mark.parametrize(("groups", "kept"), [(4, 2), (8, 2), (8, 4), (16, 4), (2, 1)])
def test_group_limited_routing_is_what_all_pairs_of_groups_would_say(groups: int, kept: int) -> None:
    policy = GroupLimited(groups=groups, kept_groups=kept)
    logits_TE, bias_E = scores(), torch.linspace(-0.2, 0.2, EXPERTS)
    found_TK = routed(policy, logits_TE, bias_E=bias_E).expert_TK
    size, best = EXPERTS // groups, max(1, min(CHOICES // kept, EXPERTS // groups))
    for score_E, found_K in zip((logits_TE.sigmoid() + bias_E).numpy(), found_TK, strict=True):
        members = [score_E[group * size : (group + 1) * size] for group in range(groups)]
        worth = [float(np.sort(member)[-best:].sum()) for member in members]
        chosen = max(itertools.combinations(range(groups), kept), key=lambda pick: sum(worth[g] for g in pick))
        allowed = [group * size + place for group in chosen for place in range(size)]
        assert found_K.tolist() == sorted(allowed, key=lambda expert: -score_E[expert])[:CHOICES]


def test_groups_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="groups = 5"):
        routed(GroupLimited(groups=5), scores())
    with pytest.raises(ValueError, match="must hold 4"):
        routed(GroupLimited(groups=16, kept_groups=2), scores())


def test_every_expert_picks_its_best_tokens_and_no_padding() -> None:
    logits_TE = scores()
    valid_T = torch.arange(48) % 5 != 0
    for view, usable_T in ((TRAINING, torch.ones(48, dtype=torch.bool)), (Pass(rows=4, valid_T=valid_T), valid_T)):
        weight_TK, expert_TK, _ = routed(ExpertChoice(), logits_TE, view)
        capacity = int(usable_T.sum()) * CHOICES // EXPERTS
        probability_TE = logits_TE.softmax(-1)
        for expert in range(EXPERTS):
            ranked = sorted(torch.nonzero(usable_T)[:, 0].tolist(), key=lambda t, e=expert: -probability_TE[t, e])
            picked_T = torch.nonzero((expert_TK == expert).any(1))[:, 0]
            assert set(picked_T.tolist()) == set(ranked[:capacity])
        values = probability_TE.gather(1, expert_TK.clamp_min(0))
        torch.testing.assert_close(weight_TK, values.masked_fill(expert_TK == NONE, 0.0))
        assert torch.all(expert_TK[~usable_T] == NONE)
        assert expert_TK.shape[1] == int((expert_TK != NONE).sum(1).max())


def test_null_experts_become_empty_choices_at_the_end() -> None:
    logits_TO = scores(outputs=2 * EXPERTS)
    weight_TK, expert_TK, penalty = routed(NullExperts(), logits_TO)
    for logits_O, weight_K, expert_K in zip(logits_TO, weight_TK, expert_TK, strict=True):
        ranked = logits_O.argsort(descending=True)[: 2 * CHOICES]
        true = [int(output) for output in ranked if output < EXPERTS]
        assert expert_K.tolist() == true + [NONE] * (2 * CHOICES - len(true))
        if true:
            torch.testing.assert_close(weight_K[: len(true)], logits_O[true].softmax(0))
        assert torch.all(weight_K[len(true) :] == 0)
    assert penalty is not None
    # Null experts that share their load unevenly cost no more than those that share it evenly.
    one, other = scores(outputs=2 * EXPERTS), scores(outputs=2 * EXPERTS)
    other[:, EXPERTS:] = one[:, EXPERTS:].roll(1, dims=1)
    first, second = (routed(NullExperts(), logits).penalty for logits in (one, other))
    assert first == pytest.approx(float(second), rel=1e-5)


def test_a_token_without_true_experts_has_no_weight() -> None:
    logits_TO = torch.zeros(3, 2 * EXPERTS)
    logits_TO[:, EXPERTS:] = 9.0
    weight_TK, expert_TK, _ = routed(NullExperts(), logits_TO)
    assert torch.all(expert_TK == NONE)
    assert torch.all(weight_TK == 0)


@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_top_p_takes_the_fewest_that_reach_the_threshold(threshold: float, spread: float) -> None:
    policy, logits_TE = TopP(threshold=threshold), scores(spread=spread)
    weight_TK, expert_TK, _ = routed(policy, logits_TE)
    assert expert_TK.shape[1] == math.ceil(threshold * EXPERTS)
    for probability_E, weight_K, expert_K in zip(logits_TE.softmax(-1), weight_TK, expert_TK, strict=True):
        chosen = expert_K[expert_K != NONE]
        assert float(probability_E[chosen].sum()) >= threshold - 1e-6
        assert float(probability_E.sort(descending=True).values[: len(chosen) - 1].sum()) < threshold
        torch.testing.assert_close(weight_K[: len(chosen)], probability_E[chosen])


def test_top_p_asks_for_certainty() -> None:
    policy = TopP(entropy_weight=0.01)
    even, sure = torch.zeros(16, EXPERTS), 9.0 * torch.eye(EXPERTS)
    penalties = [routed(policy, logits_TE).penalty for logits_TE in (even, sure)]
    assert penalties[0] is not None
    assert penalties[1] is not None
    assert penalties[0] > penalties[1]
    # Even scores: each token takes 7 experts, f sums to 7 and Q is 1/16, so the balance is 7; entropy ln 16.
    assert float(penalties[0]) == pytest.approx(7 + 0.01 / policy.balance_weight * math.log(EXPERTS), rel=1e-5)


def test_a_transport_plan_has_even_sums() -> None:
    logits_TE = scores(tokens=200)
    plan_TE = (logits_TE + potential_E(logits_TE, 500)).softmax(-1)
    torch.testing.assert_close(plan_TE.sum(1), torch.ones(200))
    torch.testing.assert_close(plan_TE.sum(0), torch.full((EXPERTS,), 200 / EXPERTS), rtol=1e-3, atol=0)
    # It is a scaling of the scores: cross ratios stay what they were.
    assert float((plan_TE.log() - logits_TE)[:, 0].std()) > 0
    apart_TE = plan_TE.log() - logits_TE
    torch.testing.assert_close(
        apart_TE[:, 1:] - apart_TE[:, :1], (apart_TE[:, 1:] - apart_TE[:, :1])[:1].expand(200, -1)
    )


def test_a_transport_plan_is_what_scaling_rows_and_columns_in_turn_gives() -> None:
    logits_TE = scores(tokens=30).double()
    kernel = [[math.exp(score) for score in row] for row in logits_TE.tolist()]
    row_T, column_E = [1.0] * 30, [1.0] * EXPERTS
    for _ in range(500):
        column_E = [30 / EXPERTS / sum(row_T[t] * kernel[t][e] for t in range(30)) for e in range(EXPERTS)]
        row_T = [1 / sum(kernel[t][e] * column_E[e] for e in range(EXPERTS)) for t in range(30)]
    by_hand = [[row_T[t] * kernel[t][e] * column_E[e] for e in range(EXPERTS)] for t in range(30)]
    plan_TE = (logits_TE + potential_E(logits_TE, 500)).softmax(-1)
    torch.testing.assert_close(plan_TE, torch.tensor(by_hand, dtype=torch.float64))


def test_a_transport_plan_does_not_see_how_popular_an_expert_is() -> None:
    logits_TE = scores(tokens=40).double().requires_grad_()
    policy = Sinkhorn(probability=1.0, regularisation=1.0, iterations=500)
    raised_TE = logits_TE + torch.linspace(-2, 2, EXPERTS, dtype=torch.float64)
    weight_TK, expert_TK, _ = routed(policy, logits_TE)
    assert torch.equal(routed(policy, raised_TE).expert_TK, expert_TK)
    torch.testing.assert_close(routed(policy, raised_TE).weight_TK, weight_TK)
    loads = [torch.bincount(routed(policy, s, Pass(rows=4)).expert_TK.flatten()) for s in (logits_TE, raised_TE)]
    assert not torch.equal(*loads)
    # So no loss can push an expert's scores up or down together, and each score may well be pushed.
    worth_TK = scores(tokens=40, outputs=CHOICES, seed=5)
    (slope_TE,) = torch.autograd.grad((weight_TK * worth_TK).sum(), logits_TE)
    assert float(slope_TE.sum(0).abs().max()) < 1e-6 < 1e-2 < float(slope_TE.abs().max())
    constant = routed(dataclasses.replace(policy, through_potentials=False), logits_TE)
    torch.testing.assert_close(constant.weight_TK, weight_TK)
    (slope_TE,) = torch.autograd.grad((constant.weight_TK * worth_TK).sum(), logits_TE)
    assert float(slope_TE.sum(0).abs().max()) > 1e-2


def test_sinkhorn_decides_in_training_only() -> None:
    always = Sinkhorn(probability=1.0, regularisation=1.0, iterations=200)
    logits_TE = scores(tokens=400)
    plan_TE = logits_TE + potential_E(logits_TE, 200)
    assert torch.equal(routed(always, logits_TE).expert_TK, plan_TE.topk(CHOICES, dim=1).indices)
    plain_TK = logits_TE.topk(CHOICES, dim=1).indices
    assert torch.equal(routed(always, logits_TE, Pass(rows=4)).expert_TK, plain_TK)
    loads = [
        torch.bincount(expert_TK.flatten(), minlength=EXPERTS).double().std()
        for expert_TK in (plain_TK, plan_TE.topk(CHOICES, dim=1).indices)
    ]
    assert loads[1] < 0.5 * loads[0]
    never = Sinkhorn(probability=0.0, noise=0.0)
    assert torch.equal(routed(never, logits_TE).expert_TK, plain_TK)
    often = [
        torch.equal(
            routed(
                dataclasses.replace(always, probability=0.25, noise=0.0),
                logits_TE,
                dataclasses.replace(TRAINING, seed=(step,)),
            ).expert_TK,
            plain_TK,
        )
        for step in range(200)
    ]
    assert 0.15 < 1 - np.mean(often) < 0.35


def test_full_experts_keep_the_earliest_of_a_row() -> None:
    policy, logits_TE = Capacity(factor=1.0), scores()
    expert_TK = routed(policy, logits_TE).expert_TK
    room = math.ceil(12 * CHOICES / EXPERTS)
    for row_TE, found_TK in zip(logits_TE.view(4, 12, EXPERTS), expert_TK.view(4, 12, CHOICES), strict=True):
        asked_TK, taken = row_TE.topk(CHOICES, dim=1).indices, [0] * EXPERTS
        for choice in range(CHOICES):
            for token in range(12):
                expert = int(asked_TK[token, choice])
                kept = taken[expert] < room
                taken[expert] += kept
                assert int(found_TK[token, choice]) == (expert if kept else NONE)
    assert 0 < (expert_TK == NONE).sum() < expert_TK.numel()


def test_padding_takes_no_room_and_decode_is_one_group() -> None:
    policy, logits_TE = Capacity(factor=1.0), scores(tokens=24)
    padded_TE = torch.zeros(2, 20, EXPERTS)
    padded_TE[:, :12] = logits_TE.view(2, 12, EXPERTS)
    valid_T = (torch.arange(20) < 12).repeat(2)
    together = routed(policy, padded_TE.flatten(0, 1), Pass(rows=2, valid_T=valid_T)).expert_TK[valid_T]
    assert torch.equal(together, routed(policy, logits_TE, Pass(rows=2)).expert_TK)
    one_each, one_row = (routed(policy, logits_TE, Pass(rows=rows)).expert_TK for rows in (24, 1))
    assert torch.equal(one_each, one_row)
    assert (one_each == NONE).any()


def test_stochastic_experts_follow_the_seed_and_not_the_scores() -> None:
    policy = policy_named("stochastic")
    first, second = (routed(policy, scores(seed=seed)) for seed in (0, 1))
    assert torch.equal(first.expert_TK, second.expert_TK)
    assert torch.all(first.weight_TK == 1 / CHOICES)
    other = routed(policy, scores(), dataclasses.replace(TRAINING, seed=(4,)))
    assert not torch.equal(first.expert_TK, other.expert_TK)
    counts = torch.bincount(routed(policy, scores(tokens=4000)).expert_TK.flatten(), minlength=EXPERTS)
    assert float(counts.double().std() / counts.double().mean()) < 0.1


def divergence_by_hand(first_V: list[float], second_V: list[float]) -> float:
    """KL(p ‖ q) of the softmax of two lists of scores."""
    p_V, q_V = ([math.exp(score) / sum(map(math.exp, of)) for score in of] for of in (first_V, second_V))
    return sum(p * math.log(p / q) for p, q in zip(p_V, q_V, strict=True))


def test_two_draws_are_asked_to_agree() -> None:
    first_BQV, second_BQV = (scores(tokens=6, outputs=5, seed=seed).view(2, 3, 5) for seed in (0, 1))
    pairs = list(zip(first_BQV.view(-1, 5).tolist(), second_BQV.view(-1, 5).tolist(), strict=True))
    by_hand = np.mean([(divergence_by_hand(p, q) + divergence_by_hand(q, p)) / 2 for p, q in pairs])
    assert float(symmetric_divergence(first_BQV, second_BQV)) == pytest.approx(by_hand, rel=1e-5)
    policy = Stochastic(consistency_weight=3.0)
    assert policy.passes == 2
    # The mean of two passes stands for the paper's sum, so its weight is halved as well.
    assert float(policy.agreement_loss([first_BQV, second_BQV])) == pytest.approx(1.5 * by_hand, rel=1e-5)
    assert float(policy.agreement_loss([first_BQV, first_BQV])) == 0
    only_stochastic = [name for name, other in POLICIES.items() if other.passes > 1]
    assert only_stochastic == ["stochastic"]
