"""Caches of experts in GPU memory: how large, and how often they were measured to hit."""

from __future__ import annotations

import re
from dataclasses import replace

from dali.experiments.verbs.backtest.case import CpuLayers, Placement, SlotCache
from dali.experiments.verbs.backtest.knobs import value_of
from dali.experiments.verbs.backtest.phrases import leading, percent, size_gb, whole
from dali.experiments.verbs.backtest.rows import Row

NONE = r"^\s*(?:off|no\b|none|without|disabled|0\s*(?:$|\(|slots?\b|[mg]i?b\b|%))"
_CACHE = r"\bcache\b|\blru\b|\bcached\b"


def in_words(text: str, row: Row) -> Placement | None:
    """Of a text that names a cache or what becomes of a miss, such as "pack, 12 GB cache" or "offload"."""
    low = text.lower()
    if re.search(rf"(?:{_CACHE})\s+off|(?:no|without)(?: a| the)? (?:expert )?cache", low):
        return CpuLayers(_host_layers(row))
    if re.search(r"\b(?:offload|hybrid)\b", low):
        return _with_hits(SlotCache(slots=_a_layer(row), misses="both" if "hybrid" in low else "copied"), low, row)
    if re.search(_CACHE, low) and not re.search(r"kv[ -]?cache", low):
        return _with_hits(SlotCache(slots=_a_layer(row), gb=size_gb(text), share=_share(text)), low, row)
    return None


def unsaid(row: Row) -> SlotCache:
    """Of an engine that always has a cache, where the row says nothing of its size."""
    return _with_hits(SlotCache(slots=_a_layer(row)), "", row)


def of_slots(value: str, row: Row) -> Placement | None:
    """Of a number of slots a layer; with none at all the CPU computes everything."""
    slots = leading(value)
    if slots is None:
        return None
    if slots == 0:
        return CpuLayers(_host_layers(row))
    of = re.search(r"\bof (\d+)", f"{row.knob} {value}")
    found = SlotCache(slots=slots, of=int(of[1]) if of else None, of_matrices="matri" in row.knob.lower())
    return _with_hits(found, row.knob_value.lower(), row)


def of_size(value: str, row: Row) -> Placement | None:
    """Of a setting named after a cache: a size, in megabytes where no unit is said, or "auto"."""
    if re.match(NONE, value.lower()):
        return CpuLayers(_host_layers(row))
    gb, number = size_gb(value), leading(value)
    if gb is None and number is not None and not re.match(r"\s*[\d.]+\s*%", value):
        gb = number * (1 if re.search(r"\bgi?b\b", row.knob.lower()) else 1e-3)
    return _with_hits(SlotCache(gb=gb, share=_share(value)), row.knob_value.lower(), row)


def _share(text: str) -> float | None:
    """A percentage that is no hit rate."""
    return percent(text) if "hit" not in text.lower() else None


def _with_hits(cache: SlotCache, own: str, row: Row) -> SlotCache:
    """With what was measured of it: in the row's own words first, then in the notes."""
    notes = row.notes.lower()
    curve = _curve(notes)
    exact = dict(curve).get(int(cache.slots)) if cache.slots is not None else None
    hits = (_hit(own), exact, None if curve else _hit(notes))
    hit = next((each for each in hits if each is not None), None)
    copied, on_cpu = (re.search(rf"(\d+(?:\.\d+)?) {word}", own) for word in ("copied", "(?:on )?cpu"))
    resident = re.search(r"([\d.]+) ?% residen", notes)
    return replace(
        cache,
        hit=hit,
        curve=curve,
        share=cache.share if cache.share is not None or not resident else round(float(resident[1]) / 100, 6),
        copied=float(copied[1]) if copied else None,
        on_cpu=float(on_cpu[1]) if on_cpu else None,
        cpu_layers=_host_layers(row),
    )


def _hit(text: str) -> float | None:
    """The hit rate that a text names once, or one less the rate of misses."""
    after = re.search(r"\bhits?(?: rate)?[ =:]*(?:of |about )?[\d.]+ ?%", text)
    before = re.search(r"[\d.]+ ?% hits?\b", text)
    missed = re.search(r"\bmiss(?:es)?(?: rate)?[ =:]*[\d.]+(?: ?(?:-|–|to) ?[\d.]+)? ?%", text)
    for found in (after, before):
        if found:
            return percent(found[0])
    lost = percent(missed[0]) if missed else None
    return None if lost is None else round(1 - lost, 6)


def _curve(text: str) -> tuple[tuple[int, float], ...]:
    """Every "64 slots 67 %" and "62.0 % hit at 186 slots"; after the first of the former plain pairs go on the list."""
    pairs = {int(n): round(float(share) / 100, 6) for share, n in re.findall(r"([\d.]+) ?% hit at (\d+) slots", text)}
    for run in re.findall(r"\d+ slots? [\d.]+ ?%?(?:, \d+(?: slots?)? [\d.]+ ?%?)*", text):
        for n, share in re.findall(r"(\d+)(?: slots?)? ([\d.]+)", run):
            pairs.setdefault(int(n), round(float(share) / 100, 6))
    return tuple(sorted((n, hit) for n, hit in pairs.items() if 0 < hit <= 1))


def _a_layer(row: Row) -> float | None:
    """Slots a layer, where the row says them or the notes have "1,024 slots, 48 layers"."""
    own = value_of(row, r"\bslots\b")
    if own is not None and leading(own) is not None:
        return leading(own)
    found = re.search(r"([\d,]+) slots,? (?:over |in )?(\d+) layers", row.notes)
    return int(found[1].replace(",", "")) / int(found[2]) if found else None


def _host_layers(row: Row) -> int | None:
    found = re.search(r"\b(\d+) (?:expert |moe )?layers (?:on|in) (?:the )?(?:host|cpu|ram)", row.notes.lower())
    return whole(found[1]) if found else None
