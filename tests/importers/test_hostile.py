"""Files made to harm, cut off or damaged: one line, nothing run, little memory, little time."""

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moecast.errors import MoecastError
from moecast.traces import ImportOptions, LoadTable, import_trace
from moecast.traces.importers import IMPORTERS
from tests.importers.layouts import (
    draw_choices,
    event_table,
    megatron_lines,
    route_lines,
    routes_document,
    sglang_dump,
    sglang_pass,
    sglang_response,
    torch_save,
    trtllm_folder,
    vllm_split,
    vllm_whole,
    write_lines,
)

MIB = 1 << 20
OPTIONS = ImportOptions(experts=6, choices=2, hidden_layers=2, layer_ids=(0, 1), limit_bytes=64 * MIB)


def torch_zip(path, pickled, records=(), *, compression=zipfile.ZIP_STORED):
    """A file as torch.save lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, data in records:
            archive.writestr(f"x/data/{name}", data)
    return path


class Harm:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def harmful(marker):
    command = f"touch {marker}"
    at = f"c{os.name}\nsystem\n".encode()
    text = b"X" + struct.pack("<I", len(command)) + command.encode()
    yield "a call", pickle.dumps({"logical_count": Harm(os.system, command)}, 2)
    yield "a call, protocol 4", pickle.dumps({"logical_count": Harm(os.system, command)}, 4)
    yield "a call, protocol 0", pickle.dumps(Harm(os.system, command), 0)
    yield "eval", pickle.dumps(Harm(eval, f"__import__('os').system({command!r})"), 2)
    yield "an instance", b"(" + text + b"i" + at[1:] + b"."
    yield "an object", b"(" + at + text + b"o."
    yield "a new object", b"\x80\x02" + at + text + b"\x85\x81."
    yield "an extension", b"\x80\x02\x82\x01."
    yield "a state", b"\x80\x02" + at + b"}b."
    yield "a name of two parts", b"\x80\x04\x8c\x0btorch._utils\x8c\x06os.sys\x93."
    yield "torch's own loader", b"\x80\x02ctorch\nload\n" + text + b"\x85R."
    yield (
        "a storage that is a function",
        b"\x80\x02(X\x07\x00\x00\x00storage" + at + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
    )
    yield "an ordered dict of something", b"\x80\x02ccollections\nOrderedDict\n" + text + b"\x85R."
    yield "a tensor of something", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + text + b"\x85R."


HARMFUL = [name for name, _ in harmful("x")]


@pytest.mark.parametrize("name", HARMFUL)
def test_nothing_in_a_pickle_runs(tmp_path, name):
    marker = tmp_path / "harmed"
    path = torch_zip(tmp_path / "x.pt", dict(harmful(marker))[name])
    with pytest.raises(MoecastError, match=r"its pickle is not plain tensors \(.*\); nothing of it was run") as failure:
        import_trace(path, OPTIONS)
    assert "\n" not in str(failure.value)
    assert not marker.exists()


def test_a_bare_pickle_is_refused_and_says_what_to_do(tmp_path):
    marker, path = tmp_path / "harmed", tmp_path / "x.pt"
    path.write_bytes(pickle.dumps(Harm(os.system, f"touch {marker}")))
    with pytest.raises(MoecastError, match=r"before PyTorch 1\.6.*weights_only=True"):
        import_trace(path, OPTIONS)
    assert not marker.exists()


def test_a_real_legacy_file_is_refused(tmp_path):
    import torch

    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(MoecastError, match=r"before PyTorch 1\.6"):
        import_trace(tmp_path / "x.pt", OPTIONS)


DOUBLED = b"\x80\x02)" + b"q\x00h\x00\x86" * 100_000
BOMBS = {
    "tuples nested deep": b"\x80\x02)" + b"\x85" * 300_000 + b".",
    "lists nested": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a tuple that doubles": DOUBLED + b".",
    "a tuple that doubles, as a key": b"\x80\x02}" + DOUBLED[2:] + b"K\x01s.",
    "a tuple that doubles, as the records": b"\x80\x02}X\x07\x00\x00\x00records" + DOUBLED[2:] + b"s.",
    "a list that holds itself": b"\x80\x02}X\x07\x00\x00\x00records]q\x00h\x00as.",
    "a list of itself, as numbers": (
        b"\x80\x02}(X\x07\x00\x00\x00records]}(X\x11\x00\x00\x00topk_ids_of_layerNX\x09\x00\x00\x00input_ids]q\x00h\x00a"
        b"uaX\x1c\x00\x00\x00last_physical_to_logical_mapNu."
    ),
    "a memo at the end of the world": b"\x80\x02Nr\xff\xff\xff\xff.",
    "an integer of two gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "an integer of 255 bytes": b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
    "text of four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
    "bytes of many exabytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a frame of many exabytes": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a number in text": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "marks": b"\x80\x02" + b"(" * 200_000 + b".",
    "dicts": b"\x80\x02" + b"}" * 300_000 + b".",
    "more dicts than there is memory": b"\x80\x02" + b"}" * 2_000_000 + b".",
    "no end": b"\x80\x02}",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickle_bombs_stop(tmp_path, name):
    path = torch_zip(tmp_path / "x.pt", BOMBS[name])
    begin = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(MoecastError) as failure:
            import_trace(path, OPTIONS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(failure.value)
    assert peak < 64 * MIB
    assert time.monotonic() - begin < 20


def tensor(shape, strides, *, elements=4, offset=0, key="0"):
    """The pickle of {"logical_count": a tensor of those sizes}, int64."""

    def number(value):
        return b"\x8a\x08" + int(value).to_bytes(8, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    named = b"X\x07\x00\x00\x00storagectorch\nLongStorage\nX" + struct.pack("<I", len(key)) + key.encode()
    storage = b"(" + named + b"X\x03\x00\x00\x00cpu" + number(elements) + b"tQ"
    return (
        b"\x80\x02}X\x0d\x00\x00\x00logical_countctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )


FOUR = np.array([1, 2, 3, 4], "<i8").tobytes()
TENSORS = {
    "a good one": (tensor([1, 2, 2], [4, 2, 1]), None),
    "larger than its storage": (tensor([1, 2, 3], [6, 3, 1]), "larger than its storage"),
    "an offset beyond": (tensor([1, 2, 2], [4, 2, 1], offset=1), "larger than its storage"),
    "a huge one with strides of zero": (tensor([10**6, 10**6, 10**6], [0, 0, 0]), "more than the 64 MiB allowed"),
    "a size that overflows": (tensor([2**62, 2**62, 2**62], [0, 0, 0]), "more than the 64 MiB allowed"),
    "a stride that overflows": (tensor([1, 2, 2], [4, 2**62, 1]), "larger than its storage"),
    "a size below zero": (tensor([1, -2, 2], [4, 2, 1]), "sizes below zero"),
    "a storage larger than its record": (tensor([1, 2, 2], [4, 2, 1], elements=2**40), "missing or of another size"),
    "a storage that is not there": (tensor([1, 2, 2], [4, 2, 1], key="7"), "missing or of another size"),
    "a storage elsewhere": (tensor([1, 2, 2], [4, 2, 1], key="../data.pkl"), "what is no storage"),
    "too few axes": (tensor([2, 2], [2, 1]), "with 3 axes"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_checked_against_their_storage(tmp_path, name):
    pickled, rule = TENSORS[name]
    path = torch_zip(tmp_path / "x.pt", pickled, [("0", FOUR)])
    options = ImportOptions(choices=1, limit_bytes=64 * MIB)
    if rule is None:
        assert import_trace(path, options).load_LE.tolist() == [[1, 2], [3, 4]]
        return
    with pytest.raises(MoecastError, match=rule):
        import_trace(path, options)


def test_zip_bombs_are_refused(tmp_path):
    good = tensor([1, 2, 2], [4, 2, 1])
    squeezed = torch_zip(tmp_path / "a.pt", good, [("0", bytes(50 * MIB))], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(MoecastError, match="a record is compressed"):
        import_trace(squeezed, OPTIONS)
    # Two entries of the directory that name the same record.
    whole = torch_zip(tmp_path / "b.pt", good, [("0", bytes(MIB)), ("1", bytes(MIB))]).read_bytes()
    ends = io.BytesIO(whole)
    with zipfile.ZipFile(ends) as archive:
        first, second = archive.getinfo("x/data/0"), archive.getinfo("x/data/1")
    twice = whole[: second.header_offset] + whole[whole.index(b"PK\x01\x02") :]
    directory = twice.index(b"PK\x01\x02")
    at = twice.rindex(b"x/data/1") - 46
    twice = bytearray(twice)
    twice[at + 42 : at + 46] = struct.pack("<I", first.header_offset)
    end = twice.rindex(b"PK\x05\x06")
    twice[end + 16 : end + 20] = struct.pack("<I", directory)
    (tmp_path / "c.pt").write_bytes(bytes(twice))
    with pytest.raises(MoecastError, match=r"overlap|differ|not a whole"):
        import_trace(tmp_path / "c.pt", OPTIONS)


def test_a_directory_larger_than_memory_is_refused(tmp_path):
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0) + b"data.pkl"
    directory = entry * (20 * MIB // len(entry))
    path = tmp_path / "x.pt"
    path.write_bytes(directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 0, 0))
    with pytest.raises(MoecastError, match="its directory takes"):
        import_trace(path, OPTIONS, importer="sglang")


LINES = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep inside": '{"prompt_routed_experts": null, "routed_experts": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "ragged": '{"prompt_routed_experts": [[[1, 2], [3]]], "choices": []}',
    "text among numbers": '{"prompt_routed_experts": [[["' + "x" * 1000 + '", 1]]]}',
    "fractions": '{"prompt_routed_experts": [[[1.5, 2]]]}',
    "truth": '{"prompt_routed_experts": [[[true, false]]]}',
    "a number of a hundred thousand digits": '{"prompt_routed_experts": [[[' + "9" * 100_000 + "]]]}",
    "a number of seventy bits": '{"prompt_routed_experts": [[[1180591620717411303424]]]}',
    "no base64": '{"prompt_routed_experts": "***"}',
    "base64 of nothing": '{"prompt_routed_experts": "AAAA"}',
    "choices that are none": '{"prompt_routed_experts": null, "choices": 3}',
    "cut off": '{"prompt_routed_experts": [[[1, 2',
    "no routing": '{"prompt_routed_experts": null, "choices": [{"routed_experts": null}]}',
    "an id too high": '{"prompt_routed_experts": [[[70000, 2]]]}',
    "an id below": '{"prompt_routed_experts": [[[-2, 2]]]}',
    "the same twice": '{"prompt_routed_experts": [[[2, 2]]]}',
    "more rows than tokens": '{"routed_experts": [[[1, 2]], [[1, 2]]], "prompt_token_ids": [1], "token_ids": [5]}',
}


@pytest.mark.parametrize("name", LINES)
def test_hostile_json_fails_in_one_line(tmp_path, name):
    path = tmp_path / "x.jsonl"
    path.write_text(LINES[name] + "\n")
    with pytest.raises(MoecastError) as failure:
        import_trace(path, ImportOptions(limit_bytes=64 * MIB), importer="vllm")
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 500 + len(str(path))


def test_a_line_longer_than_memory_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt_routed_experts": "' + "A" * (3 * MIB) + '"}\n')
    with pytest.raises(MoecastError, match="longer than the 2 MiB that can be read at once"):
        import_trace(path, ImportOptions(limit_bytes=64 * MIB))


def header(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


HEADERS = {
    "longer than the file": (2**60).to_bytes(8, "little") + b"{}",
    "no JSON": header(b"{hello"),
    "a list": header(b"[1]"),
    "a place beyond": header(b'{"1_1":{"dtype":"I64","shape":[6],"data_offsets":[0,48]}}'),
    "a place and another shape": header(b'{"1_1":{"dtype":"I64","shape":[6],"data_offsets":[0,8]}}', bytes(48)),
    "a huge shape": header(b'{"1_1":{"dtype":"I64","shape":[281474976710655],"data_offsets":[0,48]}}', bytes(48)),
    "a place from behind": header(b'{"1_1":{"dtype":"I64","shape":[6],"data_offsets":[-48,0]}}', bytes(48)),
    "no place": header(b'{"1_1":{"dtype":"I64","shape":[6]}}', bytes(48)),
    "fractions": header(b'{"1_1":{"dtype":"F64","shape":[6],"data_offsets":[0,48]}}', bytes(48)),
    "a key of its own": header(b'{"a":{"dtype":"I64","shape":[6],"data_offsets":[0,48]}}', bytes(48)),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_safetensors_fail_in_one_line(tmp_path, name):
    trtllm_folder(tmp_path, {}, experts=6, choices=2)
    (tmp_path / "rank0.safetensors").write_bytes(HEADERS[name])
    with pytest.raises(MoecastError) as failure:
        import_trace(tmp_path, ImportOptions(limit_bytes=64 * MIB))
    assert "\n" not in str(failure.value)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A good file of each kind: name -> (importer, files of a folder, what to import)."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("samples")
    prompt, generated = draw_choices(rng, 3, 2, 6, 2), draw_choices(rng, 2, 2, 6, 2)
    write_lines(folder / "split.jsonl", [vllm_split(prompt, generated)] * 2)
    write_lines(folder / "whole.jsonl", [vllm_whole(prompt, generated)] * 2)
    write_lines(folder / "sglang.jsonl", [sglang_response(prompt, generated)] * 2)
    np.savez(folder / "vllm.npz", routed_experts=prompt, token_ids=np.arange(4))
    np.save(folder / "vllm.npy", prompt)
    save_file({"routed_experts": prompt.astype(np.int16)}, folder / "vllm.safetensors")
    np.savez_compressed(folder / "topics.npz", law=prompt)
    write_lines(
        folder / "megatron.jsonl", [line for step in range(2) for line in megatron_lines(step, 0, prompt, [0, 1])]
    )
    sglang_dump(
        folder / "tokens.pt", [sglang_pass(0, 0, prompt), sglang_pass(1, 0, generated, mode=2)], [[*range(6)]] * 2
    )
    torch_save({"rank": 0, "logical_count": np.ones((3, 2, 6), np.int32)}, folder / "stat.pt")
    np.savez(folder / "events.npz", **event_table(prompt, np.zeros(3, int), np.arange(3, 6), np.zeros(3, int)))
    write_lines(folder / "routes.json", [routes_document(prompt, generated, [0, 1], experts=6)])
    log = [route_lines(prompt[:, layer], layer=layer, request="r1") for layer in (0, 1)]
    write_lines(folder / "moe_routes.jsonl", log[0] + log[1])
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


NAMES = (
    "events.npz",
    "megatron.jsonl",
    "moe_routes.jsonl",
    "routes.json",
    "sglang.jsonl",
    "split.jsonl",
    "stat.pt",
    "tokens.pt",
    "topics.npz",
    "vllm.npy",
    "vllm.npz",
    "vllm.safetensors",
    "whole.jsonl",
)


def attempt(path, **more):
    """Import: a valid trace, a load table, or one line."""
    try:
        found = import_trace(path, OPTIONS, **more)
    except MoecastError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 900  # noqa: PT017
        return None
    assert isinstance(found, LoadTable) or found.n_tokens > 0
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_is_good(tmp_path, samples, name):
    assert set(samples) == set(NAMES)
    (tmp_path / name).write_bytes(samples[name])
    assert attempt(tmp_path / name) is not None


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_and_damaged_files_are_one_line_or_a_trace(tmp_path, samples, name, data):
    whole = bytearray(samples[name])
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    path = tmp_path / name
    path.write_bytes(bytes(whole[:end]))
    begin = time.monotonic()
    attempt(path)
    for importer in IMPORTERS:
        attempt(path, importer=importer.name)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("name", NAMES)
def test_files_cut_anywhere_never_pass_for_whole_ones_of_another_kind(tmp_path, samples, name):
    whole, path = samples[name], tmp_path / name
    for end in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:end])
        attempt(path)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_statistics_of_trtllm(tmp_path, data):
    counts = {rank: {f"{it}_{layer}": [1, 2, 3, 4, 5, rank] for it in (5, 6) for layer in (1, 2)} for rank in (0, 1)}
    folder = trtllm_folder(tmp_path / "s", counts, experts=6, choices=2)
    path = folder / data.draw(st.sampled_from(["meta_info.json", "rank0.safetensors", "rank1.safetensors"]))
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))]))
    attempt(folder)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_pickle_that_is_refused_or_plain(data):
    from moecast.traces.importers.torch_pickle import RefusedPickleError, read_pickle

    try:
        read_pickle(b"\x80\x02" + data)
    except RefusedPickleError as error:
        assert len(str(error)) < 300  # noqa: PT017


@pytest.mark.parametrize("importer", IMPORTERS, ids=lambda importer: importer.name)
def test_every_importer_refuses_what_is_missing_empty_or_a_folder(tmp_path, importer):
    empty, folder = tmp_path / "empty", tmp_path / "folder"
    empty.write_bytes(b"")
    folder.mkdir()
    for path in (tmp_path / "none", empty, folder):
        assert not importer.recognises(path)
        with pytest.raises(MoecastError):
            importer.open([path], OPTIONS)
