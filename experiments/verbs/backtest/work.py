"""What was timed in a row: tokens of a prompt and of a step, sequences at once, the rule for copies of experts."""

from __future__ import annotations

import re

from dali.experiments.verbs.backtest.case import CopyRule, MeasuredDecode, MeasuredPrefill
from dali.experiments.verbs.backtest.knobs import value_of
from dali.experiments.verbs.backtest.phrases import leading, whole
from dali.experiments.verbs.backtest.rows import Row

PROMPT = 512  # what llama-bench reads where nothing is set
_ACTIVE_COPIES = 698


def prefill(row: Row) -> tuple[MeasuredPrefill | None, str]:
    """The prompt and its speed, and what was taken for what the row does not say; None where none was measured.

    None, too, where the row does not say how long the prompt was: copies of experts are spread over its tokens, so that
    its speed may be a tenth or ten times another's.
    """
    if row.prefill_tps is None:
        return None, ""
    prompt, ubatch, depth = _prompt(row), _ubatch(row), _depth(row)
    assumed = ""
    if prompt is None and re.search(r"llama-bench", f"{row.notes} {row.knob} {row.source}", re.IGNORECASE):
        prompt, assumed = PROMPT, f"prompt not said: {PROMPT} tokens, as llama-bench reads"
    if prompt is None:
        return None, ""
    if ubatch is None and row.batch.strip().lower() == "pp" and copy_rule(row).tokens:
        # A rule on the tokens of a step shows itself over prompts only if a step takes a whole prompt.
        ubatch, assumed = prompt, "tokens of a step not said: the whole prompt, since a rule on them is what was tried"
    return MeasuredPrefill(row.prefill_tps, prompt, ubatch, depth or 0), assumed


def decode(row: Row) -> MeasuredDecode | None:
    """Its speed, behind as many tokens as the row says: a depth, or else the prompt."""
    if row.decode_tps is None:
        return None
    depth, prompt = _depth(row), _prompt(row)
    return MeasuredDecode(row.decode_tps, depth if depth is not None else prompt or 0)


def batch(row: Row) -> int | None:
    """Sequences at once; "pp" names llama-bench's prefill, which reads one; None where the row does not say."""
    together = value_of(row, r"streams|concurren|parallel|sequences|\bbatch(?: size)?$")
    if together is not None and whole(together):
        return whole(together)
    if row.batch.strip().lower() in ("pp", "tg"):
        return 1
    found = whole(re.sub(r"^(?:bs|batch(?: size)?)\s*[=:]?\s*", "", row.batch.strip(), flags=re.IGNORECASE))
    return found or None


def copy_rule(row: Row) -> CopyRule:
    """What the notes or the knob say of copies to the GPU."""
    text = f"{row.knob} ; {row.knob_value} ; {row.notes}".lower()
    if re.search(r"no[_-]op[_-]offload|\bnopo\b|never copied|not copied", text):
        return CopyRule(None, "never")
    copies = None
    if re.search(r"only (?:the )?activ\w+ experts", text):
        copies = "active"
    elif re.search(r"all (?:the )?experts of (?:a|the|each) layer", text) or _before_active_copies(row):
        copies = "all"
    return CopyRule(_threshold(row, text), copies)


def _before_active_copies(row: Row) -> bool:
    """Whether a pull request of ik_llama.cpp is older than the one that copies active experts only."""
    found = re.search(r"ik_llama\.cpp[^#]*#(\d+)", row.source)
    return found is not None and int(found[1]) < _ACTIVE_COPIES


def _threshold(row: Row, text: str) -> int | None:
    """Tokens from which on experts are copied.

    Of "main copies from 32 tokens, pr from 1024" that which the series is named after.
    """
    named = dict(re.findall(r"(\w+) (?:copies )?from (\d+)", text))
    last = row.series.rpartition("-")[2].lower()
    if last in named:
        return int(named[last])
    found = re.search(r"copie[sd][^,;.]*? from (\d+)", text)
    return int(found[1]) if found else None


def _prompt(row: Row) -> int | None:
    own = value_of(row, r"\bprompt|\bpp\b|input[_ ]tokens|prefill[_ ]tokens")
    for text in (own, row.prompt, row.knob_value):
        found = re.search(r"\bpp\s?(\d+)", text or "")
        if found:
            return int(found[1])
    if own is not None and whole(own):
        return whole(own)
    return whole(row.prompt) or None


def _ubatch(row: Row) -> int | None:
    own = value_of(row, r"n_?ubatch|\bubatch|micro-?batch|\bub\b|\bchunk")
    if own is not None and whole(own):
        return whole(own)
    found = re.search(
        r"\b(?:n_?)?ub(?:atch)?[\s=]+(\d+)|\bchunk(?:ed)?(?:[- ]prefill)?(?:[- ]size)?[\s=]+(\d+)",
        f"{row.knob_value} ; {row.knob} ; {row.notes}".lower(),
    )
    return int(found[1] or found[2]) if found else None


def _depth(row: Row) -> int | None:
    own = value_of(row, r"depth|filled|context length")
    number = leading(own) if own is not None else None
    if number is not None:
        return int(number)
    found = re.search(r"@ ?d(\d+)|\bdepth (\d+)", f"{row.knob_value} ; {row.notes}".lower())
    return int(found[1] or found[2]) if found else None
