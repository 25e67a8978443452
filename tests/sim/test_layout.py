"""Who is which rank: products, memberships and pipeline stages of a Layout, by brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Layout, Plan, load_model
from moecast.sim.degrees import Degrees
from moecast.sim.plan_json import plan_fields
from moecast.sim.simulated import check_simulated

V2_LITE = load_model("deepseek-v2-lite")
AXES = ("tp", "cp", "dp", "pp", "ep", "etp", "groups")


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any layout of at most 3 in each of attention's axes, its experts cut in any way that fits."""
    tp, cp, dp, pp = (draw(st.integers(1, 3)) for _ in range(4))
    in_stage = tp * cp * dp
    etp = draw(st.sampled_from([n for n in range(1, in_stage + 1) if in_stage % n == 0]))
    ep = draw(st.sampled_from([n for n in range(1, in_stage // etp + 1) if in_stage // etp % n == 0]))
    folded = draw(st.booleans())
    return Layout(
        tp=tp,
        cp=cp,
        pp=pp,
        etp=etp,
        ep=ep,
        groups=in_stage // etp // ep,
        folded=folded,
        virtual=2 if folded else draw(st.integers(1, 2)),
        gpu_of_rank=tuple(draw(st.permutations(range(in_stage * pp)))),
    )


@settings(deadline=None, max_examples=40)
@given(layout=layouts())
def test_ranks_are_numbered_as_megatron_numbers_them(layout: Layout) -> None:
    order = itertools.product(range(layout.pp), range(layout.dp), range(layout.cp), range(layout.tp))
    found = zip(layout.stage_G, layout.dp_G, layout.cp_G, layout.tp_G, strict=True)
    assert [tuple(map(int, at)) for at in found] == list(order)
    cut = itertools.product(range(layout.pp * layout.groups), range(layout.ep), range(layout.etp))
    assert [tuple(map(int, at)) for at in zip(layout.group_G, layout.member_G, layout.etp_G, strict=True)] == list(cut)


@settings(deadline=None, max_examples=40)
@given(layout=layouts(), axis=st.sampled_from(AXES))
def test_peers_partition_the_ranks_and_differ_in_one_index_only(layout: Layout, axis: str) -> None:
    peers_XR = layout.peers(axis)
    assert peers_XR.shape[1] == getattr(layout, axis)
    assert sorted(peers_XR.ravel().tolist()) == list(range(layout.ranks))
    if axis in ("ep", "etp", "groups"):
        own = {"ep": layout.member_G, "etp": layout.etp_G, "groups": layout.group_G}
        same = [value for name, value in own.items() if name not in (axis, "groups")]
        same += [layout.stage_G] if axis == "groups" else [layout.group_G]
    else:
        of = {"tp": layout.tp_G, "cp": layout.cp_G, "dp": layout.dp_G, "pp": layout.stage_G}
        same = [value for name, value in of.items() if name != axis]
    for value_G in same:
        assert (value_G[peers_XR] == value_G[peers_XR[:, :1]]).all()


@settings(deadline=None, max_examples=40)
@given(layout=layouts(), n_layers=st.integers(6, 20))
def test_stages_take_every_layer_once_in_order_and_evenly(layout: Layout, n_layers: int) -> None:
    layers = [layout.layers_of_stage(stage, n_layers) for stage in range(layout.stages)]
    assert list(itertools.chain(*layers)) == list(range(n_layers))
    sizes = [len(part) for part in layers]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    given_ = tuple(layout.stage_of_layers(n_layers).tolist())
    said = Layout(**{**fields(layout), "stage_of_layer": given_})
    assert [said.layers_of_stage(stage, n_layers) for stage in range(layout.stages)] == layers


def fields(layout: Layout) -> dict[str, Any]:
    return {name: getattr(layout, name) for name in Layout.__dataclass_fields__}


@settings(deadline=None, max_examples=40)
@given(layout=layouts())
def test_a_stage_alone_has_its_ranks_their_gpus_and_the_same_groups(layout: Layout) -> None:
    assert np.bincount(layout.home_V).tolist() == [layout.virtual] * layout.pp
    assert layout.gpu_of_rank is not None
    for stage in range(layout.stages):
        alone, ranks_G = layout.of_stage(stage), layout.ranks_of_virtual_stage(stage)
        assert set(layout.stage_G[ranks_G].tolist()) == {int(layout.home_V[stage])}
        assert alone.gpu_of_rank == tuple(layout.gpu_of_rank[rank] for rank in ranks_G)
        for name in ("dp_G", "cp_G", "tp_G", "member_G", "etp_G"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(layout, name)[ranks_G])
        np.testing.assert_array_equal(alone.group_G, layout.group_G[ranks_G] - layout.group_G[ranks_G[0]])


def test_a_folded_pipeline_comes_back_the_way_it_went() -> None:
    assert Layout(ep=1, pp=4, virtual=2, folded=True).home_V.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert Layout(ep=1, pp=4, virtual=2).home_V.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@settings(deadline=None, max_examples=40)
@given(layout=layouts(), seed=st.integers(0, 99))
def test_values_of_shares_stand_on_each_of_their_ranks(layout: Layout, seed: int) -> None:
    rng, one = np.random.default_rng(seed), layout.of_stage(0)
    values_D, values_C = rng.integers(0, 100, layout.dp), rng.integers(0, 100, one.shares)
    assert (one.sum_by_share(one.by_share(values_C)) == values_C * layout.tp).all()
    assert (
        one.of_all_shares(values_C)[one.share_G]
        == [values_C[one.share_G[one.dp_G == d][:: layout.tp]].sum() for d in one.dp_G]
    ).all()
    assert (one.share_G[one.first_DN.ravel()] == np.arange(one.shares)).all()
    assert one.sum_by_group(values_D).sum() == values_D.sum()
    assert (one.dp_G[one.holders_D()] == np.arange(layout.dp)).all()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tp": 3}, "tp = 3: does not divide the plan's 16 ranks"),
        ({"cp": 5}, "cp = 5: does not divide"),
        ({"pp": 0}, "pp = 0: must be a whole number"),
        ({"tp": 2.0}, "tp = 2.0: must be a whole number"),
        ({"dp": 5}, "dp = 5: tp x cp x pp x dp is 5, the ranks 16"),
        ({"virtual": 3, "folded": True}, "virtual = 3: a pipeline that folds back has 2 chunks a stage"),
        ({"gpu_of_rank": (0, 1)}, "gpu_of_rank = 2 entries: the layout has 16 ranks"),
        ({"stage_of_layer": (0, 1)}, "stage_of_layer = (0, 1): for each hidden layer a stage of 0 to 0"),
        ({"pp": 2, "stage_of_layer": (1, 1)}, "none without a layer"),
        ({"groups": 2**13}, "ranks = 65536: at most 65535"),
    ],
)
def test_a_wrong_layout_is_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        Layout(**{"ep": 8, "groups": 2, **change})
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("degrees", "line"),
    [
        ({"pp": 3}, "pp = 3: does not divide the 16 ranks"),
        ({"pp": 2, "etp": 3}, "etp = 3: does not divide the 8 ranks of a pipeline stage"),
        ({"pp": 2, "ep": 16}, "ep = 16: does not divide 8 ranks"),
        ({"ep": 3}, "ep = 3: does not divide the cluster's 16 GPUs into EP groups"),
    ],
)
def test_what_does_not_divide_is_said(degrees: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        Layout.of_ranks(16, **degrees)
    assert line in str(error.value)


def test_a_plan_gives_its_stages() -> None:
    plan = Plan.contiguous(V2_LITE, ep=4, groups=2).with_(pp=3, gpu_of_rank=tuple(range(24)), replica_rule="nearest")
    parts = [plan.of_stage(stage, V2_LITE) for stage in range(3)]
    assert [part.layer_ids for part in parts] == [tuple(range(1, 9)), tuple(range(9, 18)), tuple(range(18, 27))]
    assert [part.gpu_of_rank for part in parts] == [tuple(range(first, first + 8)) for first in (0, 8, 16)]
    assert {part.replica_rule for part in parts} == {"nearest"}
    np.testing.assert_array_equal(np.concatenate([part.slots_DLGP for part in parts], axis=1), plan.slots_DLGP)
    dense = plan.with_(pp=3, stage_of_layer=(0,) + (1,) * 25 + (2,)).of_stage(0, V2_LITE)
    assert dense.layers == 0


def test_a_file_of_the_first_schema_lists_stages_of_moe_layers() -> None:
    plan = Plan.contiguous(layers=3, experts=4, choices=1, ep=2, layer_ids=(1, 2, 4))
    value = plan.with_(pp=2, gpu_of_rank=(0, 1, 2, 3)).to_json() | {"schema": 1, "stage_of_layer": [0, 0, 1]}
    assert plan_fields({k: v for k, v in value.items() if k not in ("virtual", "folded")})["stage_of_layer"] == (
        0,
        0,
        0,
        1,
        1,
    )


def test_tokens_that_stay_do_not_go_through_pipelines() -> None:
    plan = Plan.contiguous(layers=2, experts=4, choices=1, ep=2).with_(pp=2, gpu_of_rank=(0, 1, 2, 3), dispatch="stay")
    with pytest.raises(MoecastError, match="pp = 2"):
        check_simulated(plan)


def test_degrees_that_are_asked_for_lay_out_all_ranks_or_change_a_plan() -> None:
    sizes = (26, 64, 6)
    plan = Degrees(tp=2, pp=2, etp=2, vpp=2).contiguous(sizes, None, ranks=32)
    assert (plan.ep, plan.groups, plan.dp, plan.virtual, plan.ranks) == (8, 1, 8, 2, 32)
    assert Degrees(tp=2, cp=2, pp=4).sources(32) == 2
    cut = Degrees(etp=2, ep=1).put_into(Plan.contiguous(layers=2, experts=4, choices=1, ep=2))
    assert (cut.ep, cut.etp, cut.gpu_of_rank) == (2, 2, (0, 1, 2, 3))
    assert Degrees().put_into(plan) is plan
    with pytest.raises(ValueError, match="tp = 3: does not divide the plan's 32 ranks"):
        Degrees(tp=3).put_into(plan)
