"""Text comes out of every kind of file, documents are held out by name, and bad folders are refused."""

from __future__ import annotations

import gzip
import tomllib
from pathlib import Path

import pytest

from moecast.errors import MoecastError
from moecast.traces.capture.own import corpus as corpora
from moecast.traces.capture.own.corpus import MANIFEST, Corpus, folder_corpus, packaged_corpus
from moecast.traces.capture.own.extract import RULES, clean
from moecast.traces.capture.own.tokenizer import train_tokenizer
from moecast.traces.capture.own.tokens import tokenize

CASES = {
    "html": (
        "<head><title>x</title></head><p>One &amp; two</p><script>no()</script><ul><li>three",
        "One & two\n\nthree",
    ),
    "man": ('.\\" note\n.TH LS 1\n.SH NAME\n\\fBls\\fP \\- list\n.PP\ndone', "LS 1\nNAME\nls - list\n\ndone"),
    "info": ("head\x1f\nFile: a, Node: b\n\nText of b\n", "Text of b"),
    "tex": ("Intro % remark\n\\section{A} 50\\% of it", "Intro\n\n\\section{A} 50\\% of it"),
    "plain": ("a  \r\n\n\n\nb", "a\n\nb"),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_yields_the_text(rule: str) -> None:
    given, expected = CASES[rule]
    assert clean("\n".join(RULES[rule](given))) == expected


def test_the_manifest_names_known_rules_and_promises_hashes() -> None:
    manifest = tomllib.loads(MANIFEST.read_text())
    assert len(manifest["topics"]) == 6
    for topic in manifest["topics"].values():
        assert len(topic["sha256"]) == 64
        assert {package["rule"] for package in topic["packages"]} <= set(RULES)


def test_held_out_documents_are_never_trained_on(text_folder: Path) -> None:
    found = folder_corpus(text_folder)
    for topic in found.topics:
        kept, trained = found.texts(topic, held_out=True), found.texts(topic, held_out=False)
        assert kept
        assert not set(kept) & set(trained)
        assert len(kept) + len(trained) == 40


def packaged(folder: Path, monkeypatch: pytest.MonkeyPatch, extra: str = "") -> Corpus:
    """A corpus of one package that is already unpacked."""
    root = folder / "packages" / "words_1_2"
    root.mkdir(parents=True, exist_ok=True)
    for index in range(30):
        text = "A line that stands in each of the files.\n" + f"{index} is a number. " * 60
        (root / f"{index}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    manifest = folder / "corpus.toml"
    manifest.write_text(
        "bytes_per_topic = 12_000\nbytes_per_document = 1000\n[topics.numbers]\n" + extra + "\npackages = ["
        '{ name = "words", version = "1:2", files = ["*.gz"], rule = "plain" }]'
    )
    monkeypatch.setattr(corpora, "_HELD_OUT_SHARE", 0.3)
    return packaged_corpus(folder, manifest=manifest)


def test_packages_are_cut_to_size_without_what_their_files_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = packaged(tmp_path, monkeypatch)
    texts = [document.text for document in found.documents["numbers"]]
    assert 10 <= len(texts) <= 12
    assert all(len(text) <= 1000 and "stands in each" not in text for text in texts)
    assert packaged(tmp_path, monkeypatch) == found


def test_other_text_than_promised_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MoecastError, match=r"topics\.numbers\.sha256"):
        packaged(tmp_path, monkeypatch, extra='sha256 = "00"')


def test_a_package_that_cannot_be_fetched_is_one_line(tmp_path: Path) -> None:
    manifest = tmp_path / "corpus.toml"
    manifest.write_text(
        "bytes_per_topic = 1\nbytes_per_document = 1\n[topics.a]\n"
        'packages = [{ name = "no-such-package-here", version = "1", files = [], rule = "plain" }]'
    )
    with pytest.raises(MoecastError, match="no-such-package-here=1"):
        packaged_corpus(tmp_path, manifest=manifest)


def test_a_folder_without_topics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match="folder per topic"):
        folder_corpus(tmp_path)


def test_a_topic_without_held_out_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "only.txt").write_text("words")
    with pytest.raises(MoecastError, match="no training or no held-out"):
        tokenize(folder_corpus(tmp_path), vocabulary=257, folder=tmp_path)


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match="at least 257"):
        train_tokenizer([], vocabulary=100, file=tmp_path / "t.json")


def test_byte_pair_encoding_is_learned_once_and_gives_back_the_text(text_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="byte-pair encoding needs the tokenizers package")
    texts = folder_corpus(text_folder).texts("animals", held_out=False)
    first = train_tokenizer(texts, vocabulary=300, file=tmp_path / "t.json")
    ids = first.encode_all(["the cat saw 猫"])
    assert train_tokenizer([], vocabulary=300, file=tmp_path / "t.json").encode_all(["the cat saw 猫"]) == ids
    assert len(ids[0]) < len("the cat saw 猫".encode())
    assert max(ids[0]) < 300
