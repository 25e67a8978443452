"""Patterns of module names as quantised checkpoints write them: plain names, shell patterns, regular expressions.

A pattern comes from a file, so no expression of it is handed to `re` as it stands: it is taken
apart here, and put together again so that it cannot search for long (each stretch between two `.*`
is matched once, where it first fits). What this does not read (look-aheads, back-references,
repeated groups) is refused, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

MOST_PATTERNS = 2000  # that are more than names; lists of each layer's modules have some hundreds
MOST_SEARCHES = 256  # of them that look for something in the names of all layers
MOST_VARIANTS = 256  # of one expression, its alternatives multiplied out
MOST_TEXT = 400  # characters of one expression

ANY = ".*"
_CLASSES = {"d": "[0-9]", "w": r"\w", "s": r"\s"}
_NO_RANGE = re.compile(r"[^-\w]|^-|-$|-(?=-)")  # what in a set of letters means only itself
_Parts = tuple[str, ...]


class Names:
    """A set of patterns; a name is in it when one of them means it, or a module around it.

    Parameters
    ----------
    patterns
        Names: `a.b` means `a.b`, all inside it, and the same inside another module. With `*`, `?`
        or `[`: shell patterns. With the prefix `re:`: expressions, matched from the start of a
        name, as engines do.

    Raises
    ------
    ValueError
        An expression is not read; the message names it.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        words = set(patterns)
        self.tells_layers_apart = any(map(str.isdigit, "".join(words)))
        shell = {word for word in words if not word.startswith("re:") and re.search(r"[*?\[]", word)}
        regular = {word[3:] for word in words if word.startswith("re:")}
        self._names = frozenset(word for word in words - shell if not word.startswith("re:"))
        if len(shell) + len(regular) > MOST_PATTERNS:
            raise ValueError(f"at most {MOST_PATTERNS} patterns are read, here are {len(shell) + len(regular)}")
        several = [*map(_shell, sorted(shell)), *map(_read, sorted(regular))]
        variants = [parts for alternatives in several for parts in alternatives]
        if len(variants) > MOST_PATTERNS or sum(map(_searches, variants)) > MOST_SEARCHES:
            raise ValueError(f"more than {MOST_SEARCHES} patterns search all of a name, alternatives multiplied out")
        self._pattern = _compiled(variants)

    def __contains__(self, name: str) -> bool:
        parts = name.split(".")
        inside = (".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
        if self._names and any(part in self._names for part in inside):
            return True
        return self._pattern is not None and self._pattern.match(name) is not None


def _searches(parts: _Parts) -> bool:
    """Whether it has to look for something behind a `.*`, and no number before that tells it to stop."""
    at = parts.index(ANY) if ANY in parts else len(parts)
    return at < len(parts) - 1 and not any(part.isdigit() for part in parts[:at])


def _compiled(variants: list[_Parts]) -> re.Pattern[str] | None:
    if not variants:
        return None
    try:
        return re.compile("|".join(f"(?:{_put_together(parts)})" for parts in variants))
    except re.error as error:  # a range that runs back
        raise ValueError(f"a set of letters is not read ({error})") from error


def _put_together(parts: _Parts) -> str:
    """One pattern of atoms and `.*`: every stretch after a `.*` is atomic, so that nothing is tried twice."""
    stretches: list[list[str]] = [[]]
    for part in parts:
        if part == ANY:
            stretches.append([])
        else:
            stretches[-1].append(part)
    first, *rest = ("".join(stretch) for stretch in stretches)
    if rest and rest[-1].endswith(r"\Z"):  # an end that is fixed is looked for from the end
        last = ".*" + rest.pop()
        return first + "".join(f"(?>.*?{stretch})" for stretch in rest if stretch) + last
    return first + "".join(f"(?>.*?{stretch})" for stretch in rest if stretch)


def _shell(pattern: str) -> list[_Parts]:
    """`*`, `?` and `[…]`; the pattern means the whole name or a module around it."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "[" and (end := pattern.find("]", at + (3 if pattern[at + 1 : at + 2] == "!" else 2))) >= 0:
            inside = pattern[at + 1 : end]
            if inside.startswith("^"):
                raise ValueError(f"the pattern {pattern[:80]!r} is not read")
            parts.append(_set("^" + inside[1:] if inside.startswith("!") else inside))
            at = end
        elif letter in "*?":
            parts.append(ANY if letter == "*" else ".")
        else:
            parts.append(re.escape(letter))
        at += 1
    return [(*parts, r"(?:\.|\Z)")] if not parts or parts[-1] != ANY else [tuple(parts)]


@lru_cache(maxsize=1024)
def _read(expression: str) -> tuple[_Parts, ...]:
    """Take a regular expression apart: its variants, alternatives multiplied out."""
    try:
        variants, at = _alternatives(expression[:MOST_TEXT], 0)
    except (IndexError, RecursionError):
        at, variants = -1, []
    if at != len(expression):
        raise ValueError(f"the expression {expression[:80]!r} is not read")
    return tuple(variants)


def _alternatives(text: str, at: int) -> tuple[list[_Parts], int]:
    """`a|b|…` up to the end or to a closing bracket."""
    found: list[_Parts] = []
    here: list[_Parts] = [()]
    while at < len(text) and text[at] != ")":
        if text[at] == "|":
            found, here, at = found + here, [()], at + 1
            continue
        atoms, at = _atom(text, at)
        here = [(*before, *atom) for before in here for atom in atoms]
        if len(here) + len(found) > MOST_VARIANTS:
            return [], -1
    return found + here, at


def _atom(text: str, at: int) -> tuple[list[_Parts], int]:
    """One letter, set or group, with what says how often."""
    letter = text[at]
    if letter == "(":
        skip = 3 if text.startswith("(?:", at) else 1
        if text[at + skip] in "?*+":
            raise IndexError
        group, at = _alternatives(text, at + skip)
        if at < 0 or text[at] != ")" or (at + 1 < len(text) and text[at + 1] in "*+{"):
            raise IndexError
        return _optional(group, text, at + 1)
    if letter in "^$":
        return [(r"\A",) if letter == "^" else (r"\Z",)], at + 1
    if letter in "*+?{":
        raise IndexError
    one, at = _single(text, at)
    often = text[at] if at < len(text) else ""
    if often in ("*", "+"):
        at += 2 if text[at + 1 : at + 2] == "?" else 1
        if one == ".":
            return [(".", ANY) if often == "+" else (ANY,)], at
        return [(one + often + "+",)], at  # possessive: digits are taken as far as they go
    if often == "{":
        raise IndexError
    return _optional([(one,)], text, at)


def _optional(variants: list[_Parts], text: str, at: int) -> tuple[list[_Parts], int]:
    return ([*variants, ()], at + 1) if text[at : at + 1] == "?" else (variants, at)


def _single(text: str, at: int) -> tuple[str, int]:
    letter = text[at]
    if letter == "\\":
        following = text[at + 1]
        if following in _CLASSES:
            return _CLASSES[following], at + 2
        if following.isalnum():
            raise IndexError
        return re.escape(following), at + 2
    if letter == "[":
        end = text.index("]", at + 2) if "]" in text[at + 2 :] else -1
        if end < 0:
            raise IndexError
        return _set(text[at + 1 : end]), end + 1
    return ("." if letter == "." else re.escape(letter)), at + 1


def _set(inside: str) -> str:
    """A set of letters, ranges kept."""
    negated, letters = inside.startswith("^"), inside.removeprefix("^")
    letters = letters.replace("\\d", "0-9").replace("\\", "")
    if not letters:
        raise IndexError
    kept = _NO_RANGE.sub(lambda found: re.escape(found[0]), letters)
    return f"[{'^' if negated else ''}{kept}]"
