"""Flat tables, route logs and routes by token: what is written is what is imported, and what is wrong is one line."""

import csv
import errno
import io
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.traces import NO_CHOICE, PHASES, ImportOptions, fan_out, import_trace, open_import, read_trace
from tests.importers.layouts import as_choices, draw_choices, event_table, route_lines, routes_document, write_lines

few = settings(deadline=None, max_examples=25)
DECODE = PHASES.index("decode")


@st.composite
def routed(draw):
    """Routing of a few sequences: choices and weights [T, L, K], E, and each token's sequence and position."""
    layers, experts = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    choices = draw(st.integers(1, min(experts, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    tokens = sum(lengths)
    return {
        "choices_TLK": draw_choices(rng, tokens, layers, experts, choices),
        "weights_TLK": rng.random((tokens, layers, choices)).astype(np.float16),
        "experts": experts,
        "sequence_T": np.repeat(np.arange(len(lengths)), lengths),
        "position_T": np.concatenate([np.arange(length) for length in lengths]) + 3,
        "layer_ids": sorted(rng.choice(20, layers, replace=False).tolist()),
        "rng": rng,
    }


def check(trace, drawn, layer_ids=None):
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(drawn["choices_TLK"]))
    np.testing.assert_array_equal(trace.weights_TLK, drawn["weights_TLK"])
    np.testing.assert_array_equal(trace.sequence_T, drawn["sequence_T"])
    np.testing.assert_array_equal(trace.position_T, drawn["position_T"])
    assert trace.meta.experts == drawn["experts"]
    assert trace.meta.layer_ids == tuple(drawn["layer_ids"] if layer_ids is None else layer_ids)


# The formats as they are written.


@few
@given(routed())
def test_event_tables(tmp_path_factory, drawn):
    topic_T = drawn["sequence_T"] % 2
    table = event_table(
        drawn["choices_TLK"], drawn["sequence_T"] + 100, drawn["position_T"], topic_T, weights_TLK=drawn["weights_TLK"]
    )
    path = tmp_path_factory.mktemp("t") / "routing_trace.npz"
    np.savez(path, **table)
    trace = import_trace(path, ImportOptions(experts=drawn["experts"]))
    check(trace, drawn, range(drawn["choices_TLK"].shape[1]))
    assert [trace.topics[topic] for topic in trace.topic_T] == [f"topic {topic}" for topic in topic_T]
    assert set(trace.phase_T.tolist()) == {DECODE}
    np.testing.assert_array_equal(trace.token_id_T, 50 + np.arange(trace.n_tokens))
    assert trace.meta.notes == ""


@few
@given(routed(), st.booleans())
def test_route_logs(tmp_path_factory, drawn, apart):
    """Layers in files of their own, or all in one, layer after layer for each request."""
    folder, files = tmp_path_factory.mktemp("t"), []
    log = []
    for at, layer in enumerate(drawn["layer_ids"]):
        for sequence in range(int(drawn["sequence_T"].max()) + 1):
            of_it = drawn["sequence_T"] == sequence
            lines = route_lines(
                drawn["choices_TLK"][of_it, at],
                layer=layer,
                request=f"r{sequence}",
                first=3,
                weights_TK=drawn["weights_TLK"][of_it, at],
                meta=sequence == 0,
                num_experts=drawn["experts"],
            )
            log.append((layer, sequence, lines))
    for name in drawn["layer_ids"] if apart else ["all"]:
        of_file = [part for part in log if name in (part[0], "all")]
        of_file.sort(key=lambda part: part[:2] if apart else (part[1], part[0]))
        files.append(write_lines(folder / f"{name}.jsonl", [line for *_, lines in of_file for line in lines]))
    trace = import_trace(files, ImportOptions(phase="decode"))
    check(trace, drawn)
    assert trace.meta.model == "maker/tiny"
    assert trace.meta.source["vllm_version"] == "0.11.2"
    assert set(trace.phase_T.tolist()) == {DECODE}


@few
@given(routed(), st.sampled_from(["document", "list", "lines"]))
def test_routes_by_token(tmp_path_factory, drawn, form):
    documents, path = [], tmp_path_factory.mktemp("t") / "routing.json"
    drawn["position_T"] = drawn["position_T"] - 3
    if form == "document":
        drawn["sequence_T"] = drawn["sequence_T"] * 0
        drawn["position_T"] = np.arange(len(drawn["sequence_T"]))
    for sequence in range(int(drawn["sequence_T"].max()) + 1):
        of_it = drawn["sequence_T"] == sequence
        rows = drawn["choices_TLK"][of_it]
        documents.append(
            routes_document(
                rows[:2],
                rows[2:],
                drawn["layer_ids"],
                experts=drawn["experts"],
                weights_TLK=drawn["weights_TLK"][of_it],
            )
        )
    if form == "lines":
        write_lines(path, documents)
    else:
        path.write_text(json.dumps(documents if form == "list" else documents[0]))
    trace = import_trace(path)
    check(trace, drawn)
    np.testing.assert_array_equal(trace.phase_T == DECODE, drawn["position_T"] >= 2)
    np.testing.assert_array_equal(trace.token_id_T, 100 + drawn["position_T"])
    assert trace.meta.model == "tiny"


def flat(drawn, long):
    """Columns of another layout, rows shuffled within the order of the tokens' first rows."""
    choices_TLK = drawn["choices_TLK"]
    index_T, index_L, index_K = (a.ravel() for a in np.indices(choices_TLK.shape))
    if not long:
        index_T, index_L = (a.ravel() for a in np.indices(choices_TLK.shape[:2]))
        index_K = slice(None)
    columns = {
        "s": np.array([f"q{number}" for number in drawn["sequence_T"]])[index_T],
        "p": drawn["position_T"][index_T],
        "l": np.array(drawn["layer_ids"])[index_L],
        "e": choices_TLK[index_T, index_L, index_K],
        "w": drawn["weights_TLK"][index_T, index_L, index_K].astype(float),
        "t": (np.arange(len(choices_TLK)) * 7)[index_T],
        "step": drawn["position_T"][index_T] * 2,
        "rank": drawn["sequence_T"][index_T] % 3,
        "ph": np.array(["prefill", "decode"])[drawn["position_T"] % 2][index_T],
        "domain": np.array(["law", "code"])[drawn["sequence_T"] % 2][index_T],
    }
    if long:
        columns["k"] = index_K
    order = np.argsort(index_T * 1000 + drawn["rng"].permutation(len(index_T)), kind="stable")
    return {name: column[order] for name, column in columns.items()}


NAMED = "sequence=s,position=p,layer=l,expert=e,weight=w,token_id=t,step=step,source_rank=rank,phase=ph,topic=domain"


def write_flat(columns, path):
    if path.suffix == ".npz":
        np.savez(path, **columns)
    elif path.suffix == ".parquet":
        pl.DataFrame({name: column.tolist() for name, column in columns.items()}).write_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    else:
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        write_lines(path, [dict(zip(columns, row, strict=True)) for row in rows])
    return path


def mapping(text):
    return dict(part.split("=") for part in text.split(","))


@settings(deadline=None, max_examples=40)
@given(routed(), st.sampled_from(["npz", "jsonl", "parquet", "csv"]), st.booleans())
def test_columns_named_by_the_user(tmp_path_factory, drawn, kind, long):
    long = long or kind == "csv"
    path = write_flat(flat(drawn, long), tmp_path_factory.mktemp("t") / f"x.{kind}")
    options = ImportOptions(experts=drawn["experts"], columns=mapping(NAMED + (",slot=k" if long else "")))
    trace = import_trace(path, options)
    check(trace, drawn)
    np.testing.assert_array_equal(trace.token_id_T, np.arange(trace.n_tokens) * 7)
    np.testing.assert_array_equal(trace.step_T, drawn["position_T"] * 2)
    np.testing.assert_array_equal(trace.source_rank_T, drawn["sequence_T"] % 3)
    np.testing.assert_array_equal(trace.phase_T == DECODE, drawn["position_T"] % 2 == 1)
    assert [trace.topics[topic] for topic in trace.topic_T] == [("law", "code")[s % 2] for s in drawn["sequence_T"]]


@few
@given(routed(), st.randoms(use_true_random=False))
def test_rows_stand_in_any_order(tmp_path_factory, drawn, rng):
    columns = flat(drawn, long=True)
    order = np.array(rng.sample(range(len(columns["p"])), len(columns["p"])))
    path = write_flat({name: column[order] for name, column in columns.items()}, tmp_path_factory.mktemp("t") / "x.npz")
    trace = import_trace(path, ImportOptions(experts=drawn["experts"], columns=mapping(NAMED + ",slot=k")))
    back = np.argsort(trace.token_id_T)  # rising in the order in which they were made
    np.testing.assert_array_equal(trace.experts_TLK[back], as_choices(drawn["choices_TLK"]))
    np.testing.assert_array_equal(trace.weights_TLK[back], drawn["weights_TLK"])
    np.testing.assert_array_equal(trace.position_T[back], drawn["position_T"])
    names = dict(zip(drawn["sequence_T"].tolist(), trace.sequence_T[back].tolist(), strict=True))
    assert [names[sequence] for sequence in drawn["sequence_T"].tolist()] == trace.sequence_T[back].tolist()
    first = [int(trace.sequence_T[0])] + [
        int(b) for a, b in itertools.pairwise(np.maximum.accumulate(trace.sequence_T)) if b > a
    ]
    assert first == list(range(len(names)))  # numbered as they appear


def test_rows_of_one_choice_without_slots_stand_in_their_order(tmp_path):
    lines = [
        {"pos": p, "lay": lay, "exp": e}
        for p, lay, e in [(0, 4, 3), (0, 4, 1), (0, 9, 0), (0, 9, 5), (1, 4, 2), (1, 9, 2), (1, 9, 4)]
    ]
    options = ImportOptions(experts=6, columns={"position": "pos", "layer": "lay", "expert": "exp"})
    trace = import_trace(write_lines(tmp_path / "x.jsonl", lines), options)
    assert trace.experts_TLK.tolist() == [[[3, 1], [0, 5]], [[2, NO_CHOICE], [2, 4]]]
    assert trace.meta.layer_ids == (4, 9)
    assert "all tokens are taken as prefill" in trace.meta.notes
    assert "all tokens are one sequence" in trace.meta.notes


def test_lines_without_any_of_the_columns_are_left_out_and_noted(tmp_path):
    lines = [{"model": "x"}, {"p": 0, "l": 0, "e": [1]}, {"p": 1, "l": 0, "e": [2]}]
    columns = {"position": "p", "layer": "l", "expert": "e"}
    trace = import_trace(write_lines(tmp_path / "x.jsonl", lines), ImportOptions(experts=6, columns=columns))
    assert trace.experts_TLK.tolist() == [[[1]], [[2]]]
    assert "Records with none of the columns are left out" in trace.meta.notes
    with pytest.raises(MoecastError, match="line 1 = 'e': no such column, for expert; there are: 'model'"):
        import_trace(write_lines(tmp_path / "y.jsonl", lines[:1]), ImportOptions(columns=columns))


# What the public reports want, at the command line.


def invoke(*arguments):
    result = CliRunner().invoke(app, ["trace", "import", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_a_decode_trace_of_olmoe(tmp_path):
    rng = np.random.default_rng(1)
    choices_TLK = draw_choices(rng, 24 * 16, 16, 64, 8)
    sequence_T = np.repeat(np.arange(100, 124), 16)
    table = event_table(choices_TLK, sequence_T, np.tile(np.arange(16), 24) + 100, sequence_T % 4, prompt=100)
    table["token_id"] = rng.integers(0, 50000, len(table["token_id"])).astype(np.int32)  # of the event, not the token
    np.savez(tmp_path / "routing_trace.npz", **table)
    invoke(
        tmp_path / "routing_trace.npz", "--model", "olmoe-1b-7b", "--phase", "decode", "--out", tmp_path / "t.parquet"
    )
    trace = read_trace(tmp_path / "t.parquet")
    assert (trace.n_tokens, len(set(trace.sequence_T.tolist())), len(trace.topics)) == (384, 24, 4)
    assert set(trace.phase_T.tolist()) == {DECODE}
    assert trace.position_T.min() == 100
    by_hand = sum((choices_TLK // 16 == rank).any(-1) for rank in range(4)).mean()
    assert fan_out(trace, np.repeat(np.arange(4), 16)[None].repeat(16, 0)) == pytest.approx(by_hand)
    assert "token_id is left out, since rows of one token differ in it" in trace.meta.notes


def test_route_logs_of_two_layers_of_a_model(tmp_path):
    rng = np.random.default_rng(2)
    for layer in (0, 3):
        lines = []
        for request in range(20):
            choices_TK = draw_choices(rng, 20, 1, 60, 4)[:, 0]
            weights_TK = np.tile([0.4, 0.3, 0.2, 0.1], (20, 1))
            lines += route_lines(
                choices_TK, layer=layer, request=f"r{request}", weights_TK=weights_TK, meta=not request
            )
        write_lines(tmp_path / f"moe_layer{layer}.jsonl", lines)
    out = tmp_path / "t.parquet"
    files = [tmp_path / f"moe_layer{layer}.jsonl" for layer in (0, 3)]
    invoke(*files, "--experts", 60, "--model", "qwen1.5-moe-a2.7b", "--phase", "decode", "--out", out)
    trace = read_trace(out, weights=True)
    assert (trace.n_tokens, len(set(trace.sequence_T.tolist()))) == (400, 20)
    assert trace.meta.layer_ids == (0, 3)
    assert trace.meta.shape_LEK == (2, 60, 4)
    np.testing.assert_allclose(trace.weights_TLK[:, 1, 0], 0.4, atol=1e-3)


def test_routes_of_one_prompt(tmp_path):
    rng = np.random.default_rng(3)
    document = routes_document(draw_choices(rng, 6, 4, 16, 2), draw_choices(rng, 10, 4, 16, 2), range(4), experts=16)
    (tmp_path / "routing.json").write_text(json.dumps(document))
    invoke(tmp_path / "routing.json", "--out", tmp_path / "t.parquet")
    trace = read_trace(tmp_path / "t.parquet", weights=True)
    assert np.bincount(trace.phase_T, minlength=3).tolist() == [0, 6, 10]
    assert set(trace.sequence_T.tolist()) == {0}
    assert trace.meta.shape_LEK == (4, 16, 2)
    assert trace.token_id_T is not None
    assert trace.weights_TLK is not None


def test_columns_at_the_command_line(tmp_path):
    lines = [{"a": t, "b": lay, "c": [t % 3, 3 + lay]} for t in range(5) for lay in (0, 1)]
    path = write_lines(tmp_path / "x.jsonl", lines)
    command = [sys.executable, "-m", "moecast", "trace", "import", str(path), "--out", str(tmp_path / "t.parquet")]
    env = {**os.environ, "COLUMNS": "200"}
    unknown = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert unknown.returncode == 2
    assert "--columns reads other tables" in unknown.stderr
    good = subprocess.run(
        [*command, "--columns", "position=a, layer=b, expert=c", "--experts", "8"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert good.returncode == 0, good.stderr
    assert read_trace(tmp_path / "t.parquet").experts_TLK.tolist() == [[[t % 3, 3], [t % 3, 4]] for t in range(5)]


# Variants of the route log.


def test_token_numbers_that_begin_anew_are_passes(tmp_path):
    """One request name for all, the place in the batch for the token, and a meta line in every pass."""
    rng = np.random.default_rng(0)
    passes = [draw_choices(rng, tokens, 2, 6, 2) for tokens in (4, 1, 1, 3)]
    lines = [
        line
        for choices_TLK in passes
        for at in (0, 1)
        for line in route_lines(choices_TLK[:, at], layer=at + 5, request="r1")
    ]
    trace = import_trace(write_lines(tmp_path / "x.jsonl", lines), ImportOptions(experts=6))
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(np.concatenate(passes)))
    assert trace.sequence_T.tolist() == [0, 0, 0, 0, 1, 2, 3, 3, 3]
    assert trace.position_T.tolist() == [0, 1, 2, 3, 0, 0, 0, 1, 2]
    assert "token numbers begin anew" in trace.meta.notes


def test_two_runs_are_not_joined(tmp_path):
    choices_TK = draw_choices(np.random.default_rng(0), 4, 1, 6, 2)[:, 0]
    files = [write_lines(tmp_path / f"{run}.jsonl", route_lines(choices_TK, layer=0, request="r1")) for run in "ab"]
    with pytest.raises(MoecastError, match=r"b\.jsonl: line 2: request 'r1', layer 0: begins in a\.jsonl too"):
        import_trace(files, ImportOptions(experts=6))


def test_one_layer_of_a_preset_at_the_command_line(tmp_path):
    """A patch for OLMoE logs layer 0 only."""
    choices_TK = draw_choices(np.random.default_rng(0), 9, 1, 64, 8)[:, 0]
    path = write_lines(tmp_path / "x.jsonl", route_lines(choices_TK, layer=0, request="r0", num_experts=64))
    invoke(path, "--model", "olmoe-1b-7b", "--out", tmp_path / "t.parquet")
    meta = read_trace(tmp_path / "t.parquet").meta
    assert (meta.shape_LEK, meta.layer_ids) == ((1, 64, 8), (0,))
    assert "1 of the model's 16 MoE layers." in meta.notes


def test_some_layers_of_a_model_carry_their_ids(tmp_path):
    choices_TLK = draw_choices(np.random.default_rng(0), 4, 1, 6, 2)
    path = write_lines(tmp_path / "x.jsonl", route_lines(choices_TLK[:, 0], layer=5, request=1))
    told = import_trace(path, ImportOptions(experts=6, hidden_layers=8, layer_ids=(2, 3, 4, 5, 6, 7)))
    assert told.meta.layer_ids == (5,)
    assert "1 of the model's 6 MoE layers." in told.meta.notes
    counted = write_lines(tmp_path / "y.jsonl", route_lines(choices_TLK[:, 0], layer=1, request=1))
    trace = import_trace(counted, ImportOptions(experts=6, hidden_layers=8, layer_ids=(2, 3, 4, 5, 6, 7)))
    assert trace.meta.layer_ids == (3,)
    assert "counting MoE layers only" in trace.meta.notes
    with pytest.raises(MoecastError, match="layer = 5: is none of the model's 3 MoE layers, 1 to 3"):
        import_trace(path, ImportOptions(experts=6, hidden_layers=4, layer_ids=(1, 2, 3)))


# What is wrong is one line.

GOOD = {"type": "route", "req_id": "r", "token_idx": 0, "layer": 0, "topk_ids": [1, 2], "topk_weights": [0.5, 0.5]}
BAD_ROUTES = {
    "no token_idx": (
        [{k: v for k, v in GOOD.items() if k != "token_idx"}],
        "line 1 = 'token_idx': no such column, for position; there are: 'type', 'req_id', 'layer'",
    ),
    "a layer below": ([GOOD | {"layer": -1}], "line 1, layer = -1: must be from 0"),
    "the same twice": ([GOOD | {"token_idx": 3}] * 2, r"line 2: a second row for the same token and layer 0 \(req_id"),
    "a layer lacking": (
        [GOOD, GOOD | {"layer": 1}, GOOD | {"token_idx": 1}],
        "line 3: the token has no row for layer 1",
    ),
    "an expert twice": ([GOOD | {"topk_ids": [2, 2]}], r"line 1, topk_ids = \[2, 2\]: an expert is chosen twice"),
    "a huge id": ([GOOD | {"topk_ids": [1, 70000]}], "topk_ids = 70000: must be from -1 to 65535"),
    "an id of seventy bits": ([GOOD | {"topk_ids": [1, 2**70]}], "must be a whole number of at most 64 bits"),
    "fractions": ([GOOD | {"topk_ids": [1, 1.5]}], "topk_ids = 1.5: must be a whole number"),
    "text": ([GOOD | {"topk_ids": "1,2"}], "topk_ids = '1,2': must be a whole number"),
    "truth": ([GOOD | {"token_idx": True}], "token_idx = True: must be a whole number"),
    "ragged": ([GOOD, GOOD | {"layer": 1, "topk_ids": [1]}], "line 2, topk_ids = .1.: must be a list of 2"),
    "no ids": ([GOOD | {"topk_ids": []}], "must be a list of 1 to 1024"),
    "more weights": ([GOOD | {"topk_weights": [1, 2, 3]}], "topk_weights = 3: weights in a row of 2 choices"),
    "no number": ([GOOD | {"topk_weights": [0.5, float("nan")]}], "topk_weights = nan: must be a finite number"),
    "infinity": ([GOOD | {"topk_weights": [0.5, float("inf")]}], "topk_weights = inf: must be a finite number"),
    "a weight too large": ([GOOD | {"topk_weights": [0.5, 1e9]}], "must be a finite number up to 65504"),
    "a list as a request": ([GOOD | {"req_id": [1]}], "req_id = .1.: must be a whole number or text"),
    "half a character": ([GOOD | {"req_id": chr(0xD800)}], "must be text that can be printed"),
    "a negative token": ([GOOD | {"token_idx": -5}], "token_idx = -5: must be from 0 to 4294967295"),
    "a token beyond": ([GOOD | {"token_idx": 10**12}], "must be from 0 to 4294967295"),
    "a meta line only": ([{"type": "meta"}], "holds no line of type route"),
    "a number of 6,000 digits": ('{"type": "route", "topk_ids": [' + "9" * 6000 + "]}", "not whole JSON"),
    "nested deep": ('{"type": "route", "topk_ids": ' + "[" * 10**5 + "]" * 10**5 + "}", "nested too deep"),
    "cut off": ('{"type": "route", "topk_ids": [1, 2', "not whole JSON"),
}


@pytest.mark.parametrize("name", BAD_ROUTES)
def test_bad_route_logs(tmp_path, name):
    lines, rule = BAD_ROUTES[name]
    path = tmp_path / "x.jsonl"
    path.write_text(lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines))
    fails_in_one_line(path, rule, importer="vllm-routes")


def fails_in_one_line(path, rule, importer="auto", **options):
    with pytest.raises(MoecastError, match=rule) as failure:
        import_trace(path, ImportOptions(experts=9, **options), importer=importer)
    assert "\n" not in str(failure.value)
    assert str(failure.value).startswith(str(path))
    assert len(str(failure.value)) < 600 + len(str(path))


def events(**changes):
    choices_TLK = draw_choices(np.random.default_rng(0), 4, 2, 9, 2)
    return event_table(choices_TLK, np.array([7, 7, 8, 8]), np.array([3, 4, 3, 4]), np.zeros(4, int)) | changes


IDS, FOUR = events()["requested_expert_ids"], np.arange(8)
BAD_EVENTS = {
    "ids with fractions": (
        {"requested_expert_ids": IDS.astype(float)},
        "requested_expert_ids: must be an array of whole",
    ),
    "ids of objects": ({"requested_expert_ids": np.array([{}] * 8, object)}, "must be an array of whole numbers"),
    "ids with three axes": ({"requested_expert_ids": IDS[None]}, "whole numbers with 1 or 2 axes"),
    "an id too high": ({"requested_expert_ids": IDS.astype(np.int32) + 70000}, "row 0, requested_expert_ids = 7000"),
    "the same twice": ({"requested_expert_ids": IDS * 0}, "row 0, requested_expert_ids = .0, 0.: an expert is chosen"),
    "fewer layers": ({"layer_index": FOUR[:7]}, "layer_index: 7 rows, where requested_expert_ids has 8"),
    "layers that repeat": ({"layer_index": FOUR * 0}, "row 1: a second row for the same token and layer 0"),
    "layers of their own": ({"layer_index": FOUR}, "row 0: the token has no row for layer 2, which others have"),
    "weights that are text": ({"router_weights": IDS.astype(str)}, "router_weights: must be an array of numbers"),
    "weights that are none": ({"router_weights": IDS * np.nan}, "row 0, router_weights = nan: must be a finite number"),
    "positions beyond": ({"prompt_length": FOUR + 2**40}, "numbers of more than 32 bits cannot be added"),
    "tokens beyond": ({"token_id": FOUR + 2**31}, "token_id = 2147483648: must be from"),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_bad_event_tables(tmp_path, name):
    changes, rule = BAD_EVENTS[name]
    np.savez(tmp_path / "x.npz", **events(**changes))
    fails_in_one_line(tmp_path / "x.npz", rule)


ROUTE = {"token_pos": 0, "phase": "prefill", "layers": {"0": {"experts": [1, 2], "weights": [1, 0]}}}
BAD_TOKENS = {
    "another phase": ([ROUTE | {"phase": "warmup"}], "route 0, phase = 'warmup': must be train, prefill, decode"),
    "a layer by name": ([ROUTE | {"layers": {"mlp": {"experts": [1]}}}], "layers = 'mlp': a layer must be a number"),
    "a list of layers": ([ROUTE | {"layers": [[1, 2]]}], "route 0: layers must be an object"),
    "no layers": ([ROUTE | {"layers": {}}], "routes: holds no tokens"),
    "a token that is none": ([ROUTE, 3], "route 1: layers must be an object"),
    "no experts": ([ROUTE | {"layers": {"0": {}}}], "'experts': no such column, for expert; there are: 'token_pos'"),
    "the same token": ([ROUTE, ROUTE], "a second row for the same token and layer 0"),
    "routes that are none": (3, "routes: must be a list of tokens"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_bad_routes_by_token(tmp_path, name):
    routes, rule = BAD_TOKENS[name]
    (tmp_path / "x.json").write_text(json.dumps({"meta": {}, "routes": routes}))
    fails_in_one_line(tmp_path / "x.json", rule, importer="routes-json")


LONG = {"s": np.arange(4), "p": np.arange(4), "l": np.zeros(4, int), "e": np.arange(4)}
BAD_COLUMNS = {
    "an unknown name": ("expert=e,layer=l,position=p,colour=s", "columns = 'colour': one of expert, layer, position"),
    "no layer": ("expert=e,position=p", "must say which column holds layer"),
    "no such column": ("expert=e,layer=l,position=q", "no such column, for position; there are: 's', 'p', 'l', 'e'"),
    "a slot twice": ("expert=e,layer=l,position=l,slot=l", "a second row for the same token and layer 0"),
    "a phase by number": ("expert=e,layer=l,position=p,phase=s", "s = 0: must be train, prefill, decode"),
}


@pytest.mark.parametrize("kind", ["npz", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_bad_columns(tmp_path, name, kind):
    text, rule = BAD_COLUMNS[name]
    path = write_flat(LONG, tmp_path / f"x.{kind}")
    if kind == "csv" and name == "a phase by number":
        rule = "s = '0': must be train"
    with pytest.raises(MoecastError, match=rule) as failure:
        import_trace(path, ImportOptions(columns=mapping(text)))
    assert "\n" not in str(failure.value)


def test_an_unknown_table_without_columns_says_what_to_do(tmp_path):
    np.savez(tmp_path / "x.npz", **LONG)
    fails_in_one_line(
        tmp_path / "x.npz", "with 3 axes, not int64 .4.; where the arrays are columns of a table, --columns"
    )
    for kind in ("csv", "jsonl", "parquet"):
        fails_in_one_line(write_flat(LONG, tmp_path / f"x.{kind}"), "--columns")


@pytest.mark.parametrize(
    ("text", "rule"),
    [("expert", "must be NAME=COLUMN"), ("=e", "must be NAME=COLUMN"), ("expert=e,expert=f", "names expert twice")],
)
def test_columns_that_are_no_list_of_names(tmp_path, text, rule):
    path = write_flat(LONG, tmp_path / "x.jsonl")
    with pytest.raises(MoecastError, match=rule):
        invoke(path, "--columns", text, "--out", tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("s,p,l,e\n0,0,0,1\n1,1\n", "line 3: 2 cells, too few"),
        ("s,p,l,e\n0,0,0,x\n", "line 2, e = 'x': must be a whole number"),
        ("s,p,l,e\n0,0,0," + "9" * 6000 + "\n", "line 2, e = '999"),
        ('s,p,l,e\n0,0,0,"' + "x" * 300_000 + '"\n', "neither NumPy, JSON, Parquet nor CSV"),
        ("s,p,l,e\n", "holds no rows of routing"),
        ("\0\1\2", "no such column"),
    ],
)
def test_bad_csv(tmp_path, content, rule):
    (tmp_path / "x.csv").write_text(content)
    fails_in_one_line(tmp_path / "x.csv", rule, columns=mapping("sequence=s,position=p,layer=l,expert=e"))


def test_a_claim_of_many_rows_takes_no_memory(tmp_path):
    def member(shape, data=b""):
        text = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in events():
            archive.writestr(f"{name}.npy", member("(1000000000000,)", bytes(32)))
    (tmp_path / "x.npz").write_bytes(buffer.getvalue())
    tracemalloc.start()
    fails_in_one_line(tmp_path / "x.npz", "its header says .1000000000000. int32, its size differs")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.slow
def test_a_large_log_takes_little_memory(tmp_path):
    """10 MB of lines: what is held at once is the sort's keys and a batch, and a limit below that is one line."""
    path, rows = tmp_path / "moe_routes.jsonl", 80_000
    with path.open("w") as file:
        for row in range(rows):
            file.write(
                f'{{"type": "route", "req_id": "r{row // 500}", "token_idx": {row // 2 % 250}, "layer": {row % 2}, '
                f'"topk_ids": [{row % 60}, {(row + 7) % 60}], "topk_weights": [0.75, 0.25]}}\n'
            )
    assert path.stat().st_size > 9e6
    tracemalloc.start()
    opened = open_import([path], ImportOptions(experts=60))
    tokens = sum(batch.n_tokens for batch in opened.read())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tokens == opened.tokens == rows // 2
    assert peak < 40e6
    fails_in_one_line(path, "more than the 62,500 rows that can be sorted", limit_bytes=4_000_000)


class FullDisk(io.RawIOBase):
    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", **events())
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: FullDisk())
    fails_in_one_line(
        tmp_path / "x.npz", "its rows cannot be kept in .* .No space left on device.: TMPDIR names another"
    )


def test_progress_is_told_over_all_three_readings(tmp_path):
    path, seen = tmp_path / "x.npz", []
    np.savez(path, **events())
    import_trace(path, ImportOptions(progress=lambda done, total: seen.append((done, total))))
    assert seen == sorted(seen)
    assert seen[-1] == (3 * path.stat().st_size, 3 * path.stat().st_size)


def test_parquet_that_claims_more_than_memory_is_refused(tmp_path):
    """A column of one value takes a few bytes for any number of rows."""
    rows = 3_000_000
    pl.DataFrame({name: pl.repeat(1, rows, eager=True) for name in "ple"}).write_parquet(tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 2e6
    columns = mapping("position=p,layer=l,expert=e")
    fails_in_one_line(
        tmp_path / "x.parquet", "values, more than can be read at once", columns=columns, limit_bytes=4 << 20
    )


@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        ({"e": [1, None]}, "row 1, e: must be a whole number"),
        ({"e": [[1, 2], [3]]}, "row 1, e = 1: must be a list of 2, as before"),
        ({"e": [[1, 2], None]}, "row 1, e = -1: must be a list of 2"),
        ({"e": [[], [1]]}, "row 0, e = 0: must be a list of 1 to 1024"),
        ({"e": [[1, None], [1, 2]]}, "row 0, e"),
        ({"e": [1.5, 2.0]}, "row 0, e = 1.5: must be a whole number"),
        ({"e": [[[1]], [[2]]]}, "row 0, e = .1.: must be a whole number"),
        ({"e": ["1", "2"]}, "row 0, e = '1': must be a whole number"),
    ],
)
def test_bad_parquet(tmp_path, frame, rule):
    pl.DataFrame({"p": [0, 1], "l": [0, 0], **frame}).write_parquet(tmp_path / "x.parquet")
    fails_in_one_line(tmp_path / "x.parquet", rule, columns=mapping("position=p,layer=l,expert=e"))


@pytest.mark.parametrize("first", [0, 1, 7])
def test_choices_are_counted_from_whatever_number(tmp_path, first):
    lines = ["p,l,k,e"] + [
        f"{p},{layer},{first + k},{2 * p + k}" for p in range(3) for layer in range(2) for k in (1, 0)
    ]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    options = ImportOptions(experts=6, columns=mapping("position=p,layer=l,expert=e,slot=k"))
    trace = import_trace(tmp_path / "x.csv", options)
    assert trace.experts_TLK.tolist() == [[[2 * p, 2 * p + 1]] * 2 for p in range(3)]


def test_a_column_that_counts_no_choices_is_refused(tmp_path):
    """The ids of experts in the place of a choice's number, and one row that would make all tokens far wider."""
    lines = ["p,l,k,e"] + [f"{p},0,{k},{p + 4 * k}" for p in range(4) for k in range(2)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    rule = "line 9: the choices have 8 numbers, and no token has more than 2 of them in a layer"
    fails_in_one_line(tmp_path / "x.csv", rule, columns=mapping("position=p,layer=l,expert=k,slot=e"))
    rows = 70_000
    table = {"p": np.arange(rows), "l": np.zeros(rows, int), "e": np.ones(rows, int), "k": np.zeros(rows, int)}
    table["k"][7] = 1023
    np.savez(tmp_path / "x.npz", **table)
    columns = mapping("position=p,layer=l,expert=e,slot=k")
    fails_in_one_line(tmp_path / "x.npz", "row 7: the choices have 2 numbers", columns=columns)
    columns_of = np.arange(rows + 1000), np.zeros(rows + 1000, int), np.arange(rows + 1000), np.zeros(rows + 1000, int)
    table = dict(zip("plke", columns_of, strict=True))
    table["p"][rows:], table["k"][:rows], table["k"][rows:] = rows, 0, np.arange(1000)
    table["e"][rows:] = np.arange(1000)
    np.savez(tmp_path / "y.npz", **table)
    fails_in_one_line(
        tmp_path / "y.npz", "row 70999: choice 999 of a token, where nearly all have fewer", columns=columns
    )


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "npz"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_tables_are_one_line_or_a_trace(tmp_path, kind, data):
    path = write_flat(LONG, tmp_path / f"x.{kind}")
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))]))
    columns = mapping("sequence=s,position=p,layer=l,expert=e")
    try:
        assert import_trace(path, ImportOptions(columns=columns, limit_bytes=64 << 20)).n_tokens > 0
    except MoecastError as error:
        assert "\n" not in str(error)  # noqa: PT017
