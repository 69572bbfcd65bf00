"""From a row's text to a case that can be priced, or to the reason why it cannot."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dali.experiments.verbs.backtest import refusing, work
from dali.experiments.verbs.backtest.case import ENGINES, MeasuredCase, Refusal
from dali.experiments.verbs.backtest.choices import Several, chosen
from dali.experiments.verbs.backtest.engines import engine_of
from dali.experiments.verbs.backtest.phrases import leading, said, size_gb, whole
from dali.experiments.verbs.backtest.placements import placement
from dali.experiments.verbs.backtest.rows import Row


def understood(rows: Sequence[Row]) -> list[MeasuredCase | Refusal]:
    """Each row, in order."""
    return [_understood(row) for row in rows]


def _understood(row: Row) -> MeasuredCase | Refusal:
    found = refusing.at_sight(row)
    if found is not None:
        return found
    try:
        model, quant, bits = (chosen(row, name) for name in ("model", "quant", "bits_per_weight"))
    except Several as error:
        return Refusal(row.id, refusing.SEVERAL, str(error))
    if not said(model):
        return Refusal(row.id, refusing.MODEL, "")
    engine, taken = engine_of(row)
    if engine is None:
        return Refusal(row.id, refusing.ENGINE, taken)
    where, assumed = placement(row, engine)
    refused = refusing.of_placement(row, where)
    if refused is not None:
        return refused
    if engine not in ENGINES:
        return Refusal(row.id, refusing.ENGINE, engine)
    batch = work.batch(row)
    prefill, prefill_assumed = work.prefill(row)
    decode = work.decode(row)
    left_out = refusing.drafted(row) if decode is not None else ()
    if left_out and prefill is None:
        return Refusal(row.id, refusing.DRAFTER, left_out[0])
    if row.prefill_tps is not None and prefill is None:
        left_out = (*left_out, f"prefill: {refusing.PROMPT}")
        if decode is None or len(left_out) > 1:
            return Refusal(row.id, refusing.PROMPT, "")
    gpu, cpu = _named(row.gpu), _named(row.cpu)
    ram_gbs = leading(row.ram_gbs)
    return MeasuredCase(
        id=row.id,
        series=row.series,
        source=row.source,
        engine=engine,
        model=model,
        quant=said(quant),
        bits_per_weight=leading(bits),
        model_gb=size_gb(f"{model} {quant}"),
        gpu=gpu,
        gpu_mem_gb=leading(row.gpu_mem_gb),
        cpu=cpu,
        cpu_likely=None if cpu is not None else _likely(row.cpu),
        cores=whole(row.cores),
        ram=said(row.ram),
        ram_gbs=ram_gbs,
        pcie=said(row.pcie),
        threads=_threads(row),
        placement=where,
        prefill=prefill,
        decode=None if any(each.startswith("decode") for each in left_out) else decode,
        batch=batch,
        context=whole(row.context),
        kv=_kv(row),
        copy_rule=work.copy_rule(row),
        absolute=_absolute(row, gpu, cpu, ram_gbs, batch),
        knob=row.knob,
        knob_value=row.knob_value,
        notes=row.notes,
        assumed=tuple(each for each in (taken, assumed, prefill_assumed) if each),
        left_out=left_out,
    )


def _absolute(row: Row, gpu: str | None, cpu: str | None, ram_gbs: float | None, batch: int | None) -> bool:
    """Whether the machine is known well enough: its GPU, its CPU or host bandwidth, and how many sequences it ran."""
    known = gpu is not None and (cpu is not None or ram_gbs is not None) and batch is not None
    return known and "compare ratios" not in row.notes.lower()


def _named(text: str) -> str | None:
    """A part as written, None where the row names none: what stands in brackets does not count for that."""
    outside = re.sub(r"\([^()]*\)", "", text)
    if not said(outside) or re.search(r"not (?:said|in|stated|known)|^various", outside.strip(), re.IGNORECASE):
        return None
    # Models have numbers of three digits, or a letter and a digit; "2x Xeon" and "8ch" are none.
    model = re.search(r"\d{3}|\b[A-Z]{1,2}\d+\b|grace|\bm[1-5]\b|\d{3,4}\s?xtx?", outside, re.IGNORECASE)
    return text.strip() if model else None


def _likely(text: str) -> str | None:
    """The first processor that brackets name behind "not said": one of an author's machines."""
    inside = re.search(r"\(([^()]*)\)", text)
    first = re.split(r"[,/]|\bor\b", inside[1].rpartition(":")[2])[0] if inside else ""
    return _named(first)


def _threads(row: Row) -> int | None:
    found = re.search(r"\b(\d+) threads", f"{row.notes} {row.cpu} {row.knob_value}")
    return int(found[1]) if found else None


def _kv(row: Row) -> str | None:
    """What the notes, the knob or the row's context name: "KV q8_0"."""
    found = re.search(
        r"\bkv(?:[ -]?cache)?(?: type)?[ =:]+((?:b?f|fp|q|iq)\d[\w.]*)",
        f"{row.notes} {row.knob_value} {row.knob}",
        re.I,
    )
    return found[1].lower() if found else None
