"""Parts by the ways people write them: words of a text against the spellings of a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dali.experiments.parts.catalogue import Cpu, Gpu, near
from dali.policies.types import InputError

Item = TypeVar("Item", Gpu, Cpu)

_UNSAID = (
    r"not (said|stated|given|named|specified|known|in\b|mentioned)|unknown|unspecified|various|several"
    r"|n/?a\b|none\b|-*$"
)
_WORD = re.compile(r"[a-z]+|\d+|\+(?![\w ]*\d)")
_COUNTS = {"single": 1, "one": 1, "dual": 2, "two": 2, "twin": 2, "triple": 3, "three": 3, "quad": 4, "four": 4}
_COUNTS |= {"six": 6, "octa": 8, "eight": 8}


@dataclass(frozen=True)
class Word:
    """A run of letters or of digits; `gap` is what lies between it and the word before."""

    text: str
    start: int
    end: int
    gap: str


@dataclass(frozen=True)
class Mention(Generic[Item]):
    """A place in a text that names one of `items`, which share the spelling."""

    items: tuple[Item, ...]
    start: int
    end: int


def plain(text: str) -> str:
    """Lower case, without trade marks, with one sign for times that stands apart: "2x rtx 3090"."""
    lower = re.sub(r"\((r|tm|c)\)|[®™©]", " ", text.lower()).replace("×", "x").strip()
    return re.sub(r"(?<![.\w])(\d{1,2}) ?[x*] ?(?=[a-z\d])", r"\1x ", lower)


def is_unsaid(text: str) -> bool:
    """Whether a whole text says that nothing is said."""
    return re.match(_UNSAID, plain(text)) is not None


def leaves_unsaid(text: str) -> bool:
    """Whether it says so anywhere."""
    return re.search(_UNSAID.removesuffix("|-*$"), plain(text)) is not None


def words(text: str) -> list[Word]:
    """Words of a plain text, in order."""
    found: list[Word] = []
    for match in _WORD.finditer(text):
        before = found[-1].end if found else 0
        found.append(Word(match[0], match.start(), match.end(), text[before : match.start()]))
    return found


def count_beside(text: str, start: int, end: int, brands: str) -> int:
    """How many a text says there are of what stands from `start` to `end`: "2x RTX 3090", "dual", "(x2)"; else 1.

    brands  pattern of words that may stand between the number and the part
    """
    number = rf"\b(\d+) ?[x*]|\b({'|'.join(_COUNTS)})|(?:^|[,+&(]) *(\d)"
    before = re.search(rf"(?:{number})[ -]+(?:(?:{brands})[ -]*)*$", text[:start])
    if before:
        return _COUNTS[before[2]] if before[2] else int(before[1] or before[3])
    # Lanes are written in the same way: "x4 link", "x16".
    after = re.match(r"s?[ ,]*\(?(?:[x*] ?([1-9])|([1-9]) ?x)(?![\d.]|[ -]?(?:link|lane|slot|pcie))\b", text[end:])
    return int(after[1] or after[2]) if after else 1


class Index(Generic[Item]):
    """Spellings of a table.

    items     rows of it
    brands    pattern of words that a spelling may go without: "geforce rtx"
    further   words that make another part of the one before them: "ti", "laptop"
    endings   letters that may be attached to a spelling and mean nothing
    """

    def __init__(self, items: Sequence[Item], brands: str, further: Iterable[str], endings: Iterable[str]) -> None:
        self.items: Sequence[Item] = items
        self.brands = brands
        self.further = frozenset(further)
        self.endings = frozenset(endings)
        self.known: dict[tuple[str, ...], list[Item]] = {}
        for item in items:
            for spelling in self._spellings(item):
                same = self.known.setdefault(tuple(word.text for word in words(spelling)), [])
                if item not in same:
                    same.append(item)
        self.longest = max(map(len, self.known))

    def _spellings(self, item: Item) -> list[str]:
        title = without_memory(plain(item.title))
        return [title, re.sub(rf"^(?:(?:{self.brands})[ -]*)+", "", title), *item.spellings]

    def mentions(self, text: str) -> list[Mention[Item]]:
        """What a plain text names, in order."""
        found, said, place = [], words(text), 0
        while place < len(said):
            length = next((n for n in range(self.longest, 0, -1) if self._names(said, place, n)), 0)
            if length:
                items = self.known[tuple(word.text for word in said[place : place + length])]
                found.append(Mention(tuple(items), said[place].start, said[place + length - 1].end))
            place += max(length, 1)
        return found

    def _names(self, said: Sequence[Word], place: int, length: int) -> bool:
        part = said[place : place + length]
        if len(part) < length or tuple(word.text for word in part) not in self.known:
            return False
        first = part[0]
        if place and not first.gap and not re.fullmatch(self.brands, said[place - 1].text):
            return False  # the end of a longer word
        if (
            length > 1
            and first.text.isalpha()
            and len(first.text) < 3
            and part[1].text.isdigit()
            and part[1].gap == " "
        ):
            return False  # "a 100 GB disk" is no A100
        following = said[place + length] if place + length < len(said) else None
        if following is None:
            return True
        return following.text in self.endings if not following.gap else following.text not in self.further

    def refuse(self, kind: str, text: str) -> InputError:
        """The error for a text that names none of them."""
        wanted = "_".join(word.text for word in words(without_memory(plain(text))))
        names = [item.name for item in self.items]
        return InputError(f"{kind}: found {text!r}, expected one of conf/parts/{kind}.csv, {near(wanted, names)}")


def without_memory(text: str) -> str:
    """A plain text without sizes such as 24 GB."""
    return re.sub(r"\(?\b\d{1,3}(?:\.\d+)? ?(?:gb|gib|g)\b\)?|(?<=[a-z])\d{1,3} ?(?:gb|gib|g)\b", " ", text)
