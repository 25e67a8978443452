"""Damage to documents: to values by their structure, to text by its lines and words, to bytes wherever they are.

Everything is drawn from a `random.Random`, which hypothesis makes: what it draws can be drawn again, and shrunk.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

# What JSON's writer cannot say: text that stands for itself, put in after writing.
_LITERALS = {
    "\ue000digits": "9" * 6000,
    "\ue000minus": "-" + "1" * 5000,
    "\ue000nan": "NaN",
    "\ue000inf": "-Infinity",
    "\ue000over": "1e999",
    "\ue000lists": "[" * 3000 + "]" * 3000,
    "\ue000objects": '{"a":' * 1500 + "1" + "}" * 1500,
}
_TWICE = "\ue001"  # at the end of a key that stands twice
_WRITTEN = {json.dumps(key): text for key, text in _LITERALS.items()}

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63),
    10**9, 10**12, 10**18, 10**40, 0.5, -0.0, 1e-320, 1e308, -1e308, 1e15, 0.1, 1.0,
    "", " ", "0", "1", "nan", "x" * 10_000, "[/bold]", "\x1b[31m", "a\nb", "\u202e", "é", "\ud800", "\x00", "🦆" * 50,
    "400 Gb/s", "1 us", "80 GiB", "-1 us", "9" * 400 + " s", *_LITERALS,
    [], {}, [[]], [None], {"": None}, [0] * 70, [[0] * 5] * 5,
)  # fmt: skip


def mutate(value: Any, rng: Random, *, most: int = 3) -> Any:
    """A copy of a JSON value with up to `most` changes, at least one."""
    box = [_copy(value)]
    for _ in range(rng.randint(1, most)):
        _change(box, rng)
    return box[0]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _change(box: list[Any], rng: Random) -> None:
    """Change one place, found by walking down from the top."""
    holder: Any = box
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    rng.choice(_CHANGES)(holder, key, rng)


def _scalar(holder: Any, key: Any, rng: Random) -> None:
    holder[key] = rng.choice(SCALARS)


def _near(holder: Any, key: Any, rng: Random) -> None:
    """A number a little off, of another sign or another kind."""
    old = holder[key]
    if isinstance(old, int | float):
        holder[key] = rng.choice([old + 1, old - 1, -old, 2 * old, float(old), str(old), [old], old * 10**6, 0.5 * old])
    elif isinstance(old, str):
        holder[key] = rng.choice([old + "x", old[:-1], old.upper(), old * 50, [old], {old: old}, " " + old, old + "\n"])
    elif isinstance(old, list):
        holder[key] = rng.choice([old[:-1], old[1:], old + old, old[::-1], [old], dict(enumerate_text(old)), old[:1]])
    elif isinstance(old, dict):
        holder[key] = rng.choice([list(old.values()), list(old), [old], {"a": old}, list(map(list, old.items()))])
    else:
        holder[key] = rng.choice(SCALARS)


def enumerate_text(items: list[Any]) -> list[tuple[str, Any]]:
    return [(str(number), item) for number, item in enumerate(items)]


def _drop(holder: Any, key: Any, rng: Random) -> None:  # noqa: ARG001
    if isinstance(holder, dict) or len(holder) > 1:
        del holder[key]


def _again(holder: Any, key: Any, rng: Random) -> None:
    if isinstance(holder, dict):
        holder[f"{key}{_TWICE}"] = rng.choice([holder[key], None, 0])
    else:
        holder.insert(key, _copy(holder[key]))


def _rename(holder: Any, key: Any, rng: Random) -> None:
    if isinstance(holder, dict):
        value = holder.pop(key)
        holder[
            rng.choice([f"{key}s", str(key).upper(), "", "x" * 500, "\x1b[2J", "[/bold]", "a\nb", "0", "\ud800"])
        ] = value
    else:
        holder.append(holder[key])


def _swap(holder: Any, key: Any, rng: Random) -> None:
    other = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    holder[key], holder[other] = holder[other], holder[key]


_CHANGES: tuple[Callable[[Any, Any, Random], None], ...] = (_scalar, _near, _near, _drop, _again, _rename, _swap)


def to_json(value: Any, rng: Random, *, nan: str = "NaN") -> bytes:
    """The text of a mutated value, with what stands for itself put in; strict JSON it may not be."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    for escaped in ("\\ue000", "\\ue001"):
        text = text.replace(escaped, chr(int(escaped[2:], 16)))
    if "\ue000" in text:
        for key, literal in _LITERALS.items():
            text = text.replace(f'"{key}"', nan if literal == "NaN" else literal)
    return text.replace(_TWICE, "").encode("utf-8", "surrogatepass")


_WORDS = (
    "0", "-1", "999999999999", "9" * 6000, "1e999", "nan", "x" * 5000, "", '"', "<", "&a;", "]]>", "\x00", "\u202e",
    "é", "[", "{", "*a", "&a", "!!x", "- ", ": ", "#", "\t", "\x1b[31m", "[/bold]", "NV0", "GPU0", "NIC999999", "PIX",
    "true", "null", "1_0", "0x10", "1e9", "٣", "１", "1:30", "2026-11-27", "~",
)  # fmt: skip


def mutate_text(text: str, rng: Random, *, most: int = 3) -> str:
    """A text with lines and words dropped, doubled, swapped or replaced."""
    for _ in range(rng.randint(1, most)):
        if rng.random() < 0.4:
            lines = text.split("\n")
            at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            how = rng.randrange(4)
            if how == 0:
                del lines[at]
            elif how == 1:
                lines.insert(other, lines[at])
            elif how == 2:
                lines[at], lines[other] = lines[other], lines[at]
            else:
                lines[at] = lines[at][: rng.randint(0, len(lines[at]))]
            text = "\n".join(lines)
        else:
            words = [found.span() for found in re.finditer(r"[\w.+-]+|[^\w\s]+", text)]
            if words:
                begin, end = rng.choice(words)
                text = text[:begin] + rng.choice(_WORDS) + text[end:]
    return text


def mutate_bytes(data: bytes, rng: Random, *, most: int = 4) -> bytes:
    """Bytes cut off, flipped, spliced, or wrapped in what a file may come wrapped in."""
    if rng.random() < 0.15:
        return rng.choice(_WRAPS)(data)
    whole = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randint(0, max(len(whole) - 1, 0))
        how = rng.randrange(7)
        if how == 0:
            del whole[at:]
        elif how == 1 and whole:
            whole[at] ^= 1 << rng.randrange(8)
        elif how == 2 and whole:
            whole[at] = rng.choice((0, 255, 128, 10, 34, 91, 45, 57))
        elif how == 3:
            del whole[at : at + rng.randint(1, 40)]
        elif how == 4:
            begin = rng.randint(0, max(len(whole) - 1, 0))
            whole[at:at] = whole[begin : begin + rng.randint(1, 60)]
        elif how == 5:
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40))
            whole[at : at + 8] = number.to_bytes(8, rng.choice(("little", "big")))
        else:
            whole[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
    return bytes(whole)


_WRAPS: tuple[Callable[[bytes], bytes], ...] = (
    lambda _: b"",
    lambda data: b"\xef\xbb\xbf" + data,
    lambda data: data.decode("utf-8", "replace").encode("utf-16"),
    lambda data: gzip.compress(data, mtime=0),
    lambda data: data + data,
    lambda data: data + b"\0" * 64,
    lambda data: data.replace(b"\n", b"\r\n"),
    lambda data: data.replace(b" ", b"\xc2\xa0"),
    lambda _: b"[" * 100_000,
    lambda _: b'{"a":' * 100_000,
    lambda data: data[::-1],
    lambda data: b"\x80\x02" + data,
    lambda data: b"PK\x03\x04" + data,
    lambda data: b"PAR1" + data + b"PAR1",
)


def mutate_array(array: np.ndarray, rng: Random) -> np.ndarray:
    """An array of other values, another shape or another type."""
    how = rng.randrange(9)
    if how == 0 and array.size and array.dtype.kind not in "US":
        array = array.copy()
        array.flat[rng.randrange(array.size)] = rng.choice((0, 1, 5, 6, 127, -1 if array.dtype.kind != "u" else 3))
        return array
    if how == 1:
        kind = rng.choice(
            ("int8", "uint8", "int64", "uint64", "float32", "float64", "bool", "complex64", "S3", "U2", "O")
        )
        if kind == "O" or array.dtype.kind in "US":
            return array.astype(object)
        return array.astype(kind)
    if how == 2:
        return array.reshape(-1)
    if how == 3:
        return array[None]
    if how == 4:
        return array[: rng.randint(0, len(array))] if array.ndim else array
    if how == 5:
        return array.T
    if how == 6:
        return np.concatenate([array, array]) if array.ndim else array
    if array.dtype.kind in "US":
        return np.full_like(array, rng.choice(("", "x", "1")))
    if how == 7:
        return array.astype(">i4")
    return np.full_like(array, rng.choice((0, 1, 6, 100)))


def often_mutated(value: Any, rng: Random, change: Callable[[Any, Random], Any], *, part: float = 0.7) -> Any:
    """`value` as it is, or changed: some inputs stay good, so that what follows reading is tried too."""
    return change(value, rng) if rng.random() < part else value


def write_json(value: Any, rng: Random) -> bytes:
    """A JSON file's bytes: of the value, changed in its structure, its bytes, both or neither."""
    return often_mutated(to_json(often_mutated(value, rng, mutate), rng), rng, mutate_bytes, part=0.2)


def write_text(text: str, rng: Random) -> bytes:
    """A text file's bytes: as `write_json`."""
    changed = often_mutated(text, rng, mutate_text)
    return often_mutated(changed.encode("utf-8", "surrogatepass"), rng, mutate_bytes, part=0.2)
