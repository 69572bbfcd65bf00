"""Where a row's experts are, from its knob: what llama.cpp calls n_cpu_moe, exps=CPU, ngl and --fit, caches, shares."""

from __future__ import annotations

import re
from collections.abc import Callable

from dali.experiments.verbs.backtest import caches
from dali.experiments.verbs.backtest.case import (
    RULES,
    AllGpu,
    CpuLayers,
    FitMemory,
    GpuLayers,
    Hot,
    Placement,
    Share,
)
from dali.experiments.verbs.backtest.knobs import value_of
from dali.experiments.verbs.backtest.phrases import leading, percent, size_gb, whole
from dali.experiments.verbs.backtest.rows import Row

_EVERY = 99  # llama.cpp takes a number beyond the model's layers for all of them, and 99 is what people write
_COUNT = r"[\s=:]*(\d+)"
_MIB = 1.048576e-3  # 1e9 bytes

_Made = Callable[[re.Match[str], str], Placement]


def placement(row: Row, engine: str) -> tuple[Placement, str]:
    """Where the experts are, and what was taken for it that the row does not say; "" where it does.

    The value of the knob counts first, then its name, then what the notes say in llama.cpp's own words.
    """
    found = _in_words(_arm(row), row) or _in_words(row.knob_value, row) or _of_settings(row)
    found = found or _in_words(row.knob, row) or _explicit(row.notes)
    return (found, "") if found is not None else _default(engine, row)


def _arm(row: Row) -> str:
    """What a source with "arm A = this, arm B = that" says of the arm in the notes."""
    named = re.match(r"arm (\w)\b", row.notes, re.IGNORECASE)
    found = re.search(rf"arm {named[1]} = ([^,)]*)", row.source, re.IGNORECASE) if named else None
    return found[1] if found else ""


# ---- words -----------------------------------------------------------------------------------------


def _in_words(text: str, row: Row) -> Placement | None:
    """What a text says by itself, whatever the name of the knob."""
    low = text.lower()
    found = _explicit(text)
    if found is not None:
        return found
    if re.search(r"--fit\b|\bfit\b", low):
        return _fit(row)
    if "ollama" in low:
        return GpuLayers()
    if re.search(r"static (?:expert )?layers|\btuned\b", low):
        return FitMemory()
    if re.search(r"(?:all|everything|fully) (?:on|in) (?:the )?(?:gpu|vram)|full gpu", low):
        return AllGpu()
    return caches.in_words(text, row)


def _explicit(text: str) -> Placement | None:
    """llama.cpp's own words, which mean one thing wherever they stand."""
    low = text.lower()
    for pattern, made in _WORDS:
        found = re.search(pattern, low)
        if found:
            return made(found, low)
    return None


def _of_layers(found: re.Match[str], text: str) -> Placement:
    """Experts of "n" layers on the CPU, or "n of m"."""
    n, of = int(found[1]), int(found[2]) if found[2] else None
    if n == 0:
        return AllGpu()
    every = n >= _EVERY or n == of or text[found.end() :].lstrip().startswith("(all")
    return CpuLayers(None if every else n, of)


def _ngl(found: re.Match[str], text: str) -> Placement:
    n, of = int(found[1]), int(found[2]) if found[2] else None
    return AllGpu() if n >= (of or _EVERY) else GpuLayers(n, of)


_OF = r"(?:\s*(?:of|/)\s*(\d+))?"
_WORDS: tuple[tuple[str, _Made], ...] = (
    (rf"(?:n[_-]?cpu[_-]?moe|ncmoe){_COUNT}{_OF}", _of_layers),
    (rf"(\d+){_OF} (?:expert |moe )?layers (?:on|in) (?:the )?(?:cpu|ram|host)", _of_layers),
    (
        r"(?:exps?\W{0,4}=\s*cpu|(?<!n[_-])(?<!n)cpu[_-]moe|experts? (?:on|in) (?:the )?(?:cpu|host memory|ram)|"
        r"all (?:moe )?experts? (?:on |in )?(?:the )?(?:cpu|ram|host))(?!\s*(?:off|=\s*0))",
        lambda found, text: CpuLayers(),
    ),
    (rf"(?:ngl|gpu[_-]layers){_COUNT}{_OF}", _ngl),
    (rf"(\d+){_OF} layers offloaded", _ngl),
    (
        r"\d+[^,;]{0,24}? layers (?:on|in) (?:the )?(?:gpus?|vram)",
        lambda found, text: CpuLayers(on_gpu=sum(map(int, re.findall(r"\d+", found[0])))),
    ),
)


# ---- settings --------------------------------------------------------------------------------------


def _of_settings(row: Row) -> Placement | None:
    """By a setting's name and its value."""
    for name, made in _SETTINGS:
        value = value_of(row, name)
        found = None if value is None else made(value, row)
        if found is not None:
            return found
    return None


def _number_of_layers(value: str, row: Row) -> Placement | None:
    if re.match(r"all\b", value.lower()):
        return CpuLayers()
    found = re.match(rf"\s*(\d+){_OF}", value)
    return _of_layers(found, value) if found else None


def _switch(value: str, row: Row) -> Placement | None:
    """cpu-moe, on or off."""
    if re.match(r"(?:off|no\b|false|0\b|none|disabled)", value.lower()):
        return AllGpu()
    return CpuLayers() if re.match(r"(?:on|yes|true|1\b|all|enabled)", value.lower()) else None


def _whole_layers(value: str, row: Row) -> Placement | None:
    found = re.match(rf"\s*(\d+){_OF}", value)
    return _ngl(found, value) if found else None


def _layers_on_gpu(value: str, row: Row) -> Placement | None:
    n = whole(value)
    return None if n is None else CpuLayers(on_gpu=n)


def _share(value: str, row: Row) -> Placement | None:
    """Of all experts, in per cent unless it is written as a fraction below 1."""
    number = percent(value) if "%" in value else leading(value)
    if number is None:
        return None
    in_percent = "%" not in value and (number > 1 or re.search(r"pct|percent|%", row.knob.lower()))
    share = number / 100 if in_percent else number
    return Share(share, _rule(row)) if 0 <= share <= 1 else None


def _experts_a_layer(value: str, row: Row) -> Placement | None:
    n, of = whole(value), re.search(r"\bof (\d+)", f"{value} {row.knob}")
    if n is None:
        return None
    if "hot" not in row.knob.lower():
        return Share(None, _rule(row), n)
    return Hot(n, int(of[1]) if of else None) if n else CpuLayers()


def _rule(row: Row) -> str:
    low = f"{row.knob} {row.knob_value} {row.notes}".lower().replace("front loading", "front-loading")
    return next((rule for rule in RULES if rule in low), "uniform")  # the engine's own default


def _fit(row: Row, value: str = "") -> Placement:
    """As much as GPU memory takes: of what was used, of what was free, or of all but a margin; megabytes are 2**20."""
    sizes = [value_of(row, name) for name in (r"used", r"\bfree[_ ]|\bbudget\b", r"target|margin|spare")]
    used, free, spare = (None if each is None else size_gb(each) or _mib(each) for each in sizes)
    return FitMemory(used or free, spare if used is None else None)


def _mib(value: str) -> float | None:
    number = leading(value)
    return None if number is None else number * _MIB


_SETTINGS: tuple[tuple[str, Callable[[str, Row], Placement | None]], ...] = (
    (r"n[_-]?cpu[_-]?moe|ncmoe|layers (?:on|in) (?:the )?(?:cpu|ram|host)", _number_of_layers),
    (r"cpu[_-]moe|exps=cpu|experts on (?:the )?cpu", _switch),
    (r"\bngl\b|gpu[_-]layers", _whole_layers),
    (r"layers (?:on|in) (?:the )?(?:gpu|vram)", _layers_on_gpu),
    (r"\bslots\b", caches.of_slots),
    (r"experts?\b.*(?:share|ratio|%)|experts_(?:share|ratio)|(?:share|ratio) of (?:all |the )?experts", _share),
    (r"hot experts|gpu[_-]experts|(?<!cache )experts (?:a|per) layer", _experts_a_layer),
    (r"\bcache\b(?! type)", caches.of_size),
    (r"\bfit|free[_ ](?:mib|mb|vram|gpu)|vram budget", lambda value, row: _fit(row)),
)


# ---- what nothing says -----------------------------------------------------------------------------


def _default(engine: str, row: Row) -> tuple[Placement, str]:
    """What people get who set nothing."""
    if engine == "ktransformers":
        return Share(None, "uniform"), "experts on the GPU not said: as many of each layer as its memory takes"
    if engine in ("imp", "nvmoe", "freetoken"):
        found = caches.unsaid(row)
        known = found.slots is not None or found.share is not None
        return found, "" if known else "size of the cache not said: as its memory takes"
    return FitMemory(), "layers on the CPU not said: as few as GPU memory allows"
