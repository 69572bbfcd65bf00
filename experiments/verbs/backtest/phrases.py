"""Numbers and sizes in text that people wrote."""

from __future__ import annotations

import re

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_ABOUT = r"(?:~|≈|about|ca\.?|>|<)?\s*"
# Bytes of a unit; a single letter is meant in powers of 1024 by those who write it so.
_UNITS = {"gib": 1.073741824, "gb": 1.0, "g": 1.073741824, "mib": 1.048576e-3, "mb": 1e-3, "m": 1.048576e-3}
_SIZE = re.compile(rf"({_NUMBER})\s*(GiB|GB|MiB|MB|G|M)\b", re.IGNORECASE)


def quantity(text: str) -> float | None:
    """The number of a cell that is one, with a thousands' comma, "~" or a unit after it if wanted; None for others."""
    found = re.fullmatch(rf"{_ABOUT}({_NUMBER})(?:\s*(?:±|\+/-)\s*[\d.]+)?(?:\s*(?:tok(?:en)?s?|t)/s)?", text.strip())
    return _plain(found[1]) if found else None


def leading(text: str) -> float | None:
    """The number that a text begins with: "~56", "96 (rated)", "16k" (thousands of 1024); None where it does not."""
    found = re.match(rf"{_ABOUT}({_NUMBER})(?:\s*([kK])(?![A-Za-z]))?", text.strip())
    return None if not found else _plain(found[1]) * (1024 if found[2] else 1)


def whole(text: str) -> int | None:
    """The same, where it is a whole number."""
    found = leading(text)
    return int(found) if found is not None and found == int(found) else None


def size_gb(text: str) -> float | None:
    """The first size in a text, 1e9 bytes."""
    found = _SIZE.search(text)
    return _plain(found[1]) * _UNITS[found[2].lower()] if found else None


def percent(text: str) -> float | None:
    """The first percentage in a text, as a fraction; of a range such as "5.5-7.8 %" the middle."""
    found = re.search(rf"({_NUMBER})(?:\s*(?:-|–|to)\s*({_NUMBER}))?\s*(?:%|per cent|percent)", text)
    if not found:
        return None
    return round((_plain(found[1]) + _plain(found[2] or found[1])) / 200, 6)


def said(text: str) -> str:
    """A cell, empty where it says that the source does not say."""
    empty = re.match(
        r"(?:not (?:said|known|given|in|stated)|unknown|unspecified|n/?a\b|none$|\?|-+$|–$)", text.strip(), re.I
    )
    return "" if empty else text.strip()


def _plain(number: str) -> float:
    return float(number.replace(",", ""))
