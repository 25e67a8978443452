import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moecast.errors import MoecastError
from moecast.traces import NO_CHOICE, PHASES, ImportOptions, import_npz, import_trace

LAW = np.array([[[0, 1], [2, 3]], [[1, 0], [3, 2]], [[4, 1], [0, 3]]], np.uint8)  # 3 tokens, 2 layers, 2 choices


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_topics_sequences_and_positions(tmp_path):
    path = npz(tmp_path / "x.npz", law=LAW, law_seqlen=np.array([2, 1]), code=LAW[:2], code_seqlen=np.array([1, 1]))
    trace = import_npz(path, model="tiny", phase="decode")
    assert trace.topics == ("law", "code")
    assert trace.topic_T.tolist() == [0, 0, 0, 1, 1]
    assert trace.sequence_T.tolist() == [0, 0, 1, 2, 3]
    assert trace.position_T.tolist() == [0, 1, 0, 0, 0]
    assert [PHASES[i] for i in trace.phase_T] == ["decode"] * 5
    np.testing.assert_array_equal(trace.experts_TLK, np.concatenate([LAW, LAW[:2]]))
    assert (trace.step_T, trace.source_rank_T, trace.token_id_T, trace.weights_TLK) == (None,) * 4
    assert trace.meta.model == "tiny"
    assert trace.meta.source["file"] == "x.npz"


def test_what_is_guessed_is_said(tmp_path):
    path = npz(tmp_path / "x.npz", law=LAW)
    trace = import_npz(path)
    assert trace.meta.experts == 5
    assert "E = 5 is taken from the highest expert id" in trace.meta.notes
    assert "Taken as one sequence each, for want of _seqlen: law" in trace.meta.notes
    assert import_npz(path, experts=8).meta.experts == 8
    told = import_npz(npz(tmp_path / "y.npz", law=LAW, law_seqlen=np.array([3])), experts=8)
    assert told.meta.notes == ""


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, ">i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_whole_numbers_in_any_order(tmp_path, dtype, order):
    trace = import_npz(npz(tmp_path / "x.npz", law=np.asarray(LAW, dtype, order=order)))
    np.testing.assert_array_equal(trace.experts_TLK, LAW)


def test_minus_one_and_65535_are_no_choice(tmp_path):
    signed, unsigned = LAW.astype(np.int16), LAW.astype(np.uint16)
    signed[0, 0], unsigned[0, 0] = -1, NO_CHOICE
    for name, array in (("a", signed), ("b", unsigned)):
        trace = import_npz(npz(tmp_path / f"{name}.npz", law=array))
        assert trace.experts_TLK[0, 0].tolist() == [NO_CHOICE, NO_CHOICE]
        assert trace.meta.experts == 5


def test_a_topic_without_tokens(tmp_path):
    trace = import_npz(npz(tmp_path / "x.npz", law=LAW, code=LAW[:0], code_seqlen=np.zeros(0, int)))
    assert trace.n_tokens == 3


BAD_ARRAYS = {
    "numbers with fractions": ({"law": LAW.astype(float)}, "law: must be an array of whole numbers with 3 axes"),
    "two axes": ({"law": LAW[0]}, "law: must be an array of whole numbers with 3 axes"),
    "no layers": ({"law": LAW[:, :0]}, "law.*must be"),
    "pickled objects": ({"law": np.array([{"a": 1}, None], object)}, "law: must be an array of whole numbers"),
    "an id below -1": ({"law": LAW.astype(np.int8) - 2}, "law = -2: an expert id below -1"),
    "an id above 16 bits": ({"law": LAW.astype(np.int32) + 70_000}, "law = 70004: an expert id above 65534"),
    "an expert twice": ({"law": LAW * 0}, "law: token 0, layer 0: expert 0 is chosen twice"),
    "topics of different layers": ({"law": LAW, "code": LAW[:, :1]}, "differ in layers and choices"),
    "lengths that do not add up": ({"law": LAW, "law_seqlen": np.array([2])}, "add up to 2, the topic has 3 tokens"),
    "a negative length": ({"law": LAW, "law_seqlen": np.array([4, -1])}, "lengths must be from 1 to the topic's 3"),
    "a huge length": ({"law": LAW, "law_seqlen": np.array([2**63], np.uint64)}, "lengths must be from 1"),
    "lengths with fractions": ({"law": LAW, "law_seqlen": np.array([1.5, 1.5])}, "whole numbers with 1 axes"),
    "lengths of no topic": ({"law": LAW, "code_seqlen": np.array([3])}, "code_seqlen: must be an array of whole"),
    "nothing": ({}, "holds no arrays"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_fail_in_one_line(tmp_path, case):
    arrays, rule = BAD_ARRAYS[case]
    path = npz(tmp_path / "x.npz", **arrays)
    with pytest.raises(MoecastError, match=rule) as failure:
        import_npz(path)
    assert str(failure.value).startswith(str(path))
    assert "\n" not in str(failure.value)


def test_more_experts_than_told(tmp_path):
    with pytest.raises(MoecastError, match=r"expert = 4: outside 0…2"):
        import_npz(npz(tmp_path / "x.npz", law=LAW), experts=3)


def header(shape="(3, 2, 2)", descr="'|u1'", version=1):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


HOSTILE = {
    "a size of its own": header("(3000000, 20000, 2)") + bytes(12),
    "a size too small": header("(1, 2, 2)") + bytes(12),
    "a negative size": header("(-3, -2, 2)") + bytes(12),
    "a size of text": header("('a', 2, 2)") + bytes(12),
    "a header of code": header("__import__('os').getpid()") + bytes(12),
    "a header that ends": header()[:20],
    "no header": bytes(30),
    "a later version": header(version=3) + bytes(12),
    "a strange type": header(descr="'O'") + bytes(12),
    "a broken type": header(descr="[('a'") + bytes(12),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_fail_in_one_line(tmp_path, case):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("law.npy", HOSTILE[case])
    with pytest.raises(MoecastError) as failure:
        import_npz(path)
    assert "\n" not in str(failure.value)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("law.npy", header("(5000000, 2, 2)") + bytes(20_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(MoecastError, match="unpacks to 19 MiB, more than the 9 MiB allowed"):
        import_trace(path, ImportOptions(limit_bytes=10_000_000))


@pytest.mark.parametrize("name", ["law.txt", "law.npy.exe", "a\nb.npy"])
def test_strange_members_are_refused(tmp_path, name):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"hello")
    with pytest.raises(MoecastError, match=r"every entry must be one \.npy array"):
        import_npz(path)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damage_is_one_line_whatever_it_hits(tmp_path_factory, data):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, law=LAW, law_seqlen=np.array([2, 1]))
    whole = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("t") / "x.npz"
    path.write_bytes(bytes(whole)[: data.draw(st.integers(0, len(whole)))])
    try:
        import_npz(path)
    except MoecastError as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.int16, st.tuples(st.integers(0, 9), st.integers(1, 3), st.just(1)), elements=st.integers(-1, 30)))
def test_any_single_choice_is_imported_as_it_is(tmp_path_factory, array):
    trace = import_npz(npz(tmp_path_factory.mktemp("t") / "x.npz", law=array))
    np.testing.assert_array_equal(trace.experts_TLK, np.where(array < 0, NO_CHOICE, array.astype(int)))


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(MoecastError, match="no such file"):
        import_trace(tmp_path / "x.npz")
    (tmp_path / "x.pt").write_bytes(b"hello")
    with pytest.raises(MoecastError, match="no importer knows this file; there are: npz, vllm"):
        import_trace(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="phase"):
        ImportOptions(phase="warmup")


def test_progress_reaches_the_end(tmp_path):
    path, seen = npz(tmp_path / "x.npz", law=LAW, code=LAW), []
    import_trace(path, ImportOptions(progress=lambda done, total: seen.append((done, total))))
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)
