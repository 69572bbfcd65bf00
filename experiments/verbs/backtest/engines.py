"""Which engine a row was measured with, from what it says of itself and of its source."""

from __future__ import annotations

import re

from dali.experiments.verbs.backtest.rows import Row

# By what a row's knob and value name, most particular first.
_NAMED = (
    (r"ik[_-]llama", "ik_llama_cpp"),
    (r"llama\.cpp|llama[_-]cpp|llama-(?:bench|server)|\bollama\b|lm studio|kobold", "llama_cpp"),
    (r"ktransformers|kt-kernel", "ktransformers"),
    (r"exllama|\bexl[23]\b", "exllamav3"),
)
# By whose repository or page it is.  Forks of llama.cpp that add a cache of experts count as llama.cpp.
_SOURCES = (
    (r"ikawrakow|ik_llama", "ik_llama_cpp"),
    (r"kvcache-ai|ktransformers", "ktransformers"),
    (r"turboderp|exllama", "exllamav3"),
    (r"kekzl/imp\b", "imp"),
    (r"/nvmoe\b", "nvmoe"),
    (r"flashml|freetoken", "freetoken"),
    (r"llama\.?-?_?cpp|ggml|unsloth|club-3090|ollama|lmstudio", "llama_cpp"),
)
# Their words for where experts are, and formats that only they read.
_LLAMA_WORDS = r"n[_-]?cpu[_-]?moe|ncmoe|exps?=cpu|cpu[_-]moe|\bngl\b|n[_-]gpu[_-]layers|--fit\b|fit[_-]target"
_IK_FORMATS = r"IQ\d_K|_R[48]\b|IQ\d_KT|IQ\d_KSS?\b|IQ\d_KL\b"
_GGUF_FORMATS = r"\bU?D?-?I?Q\d_[01KSMLX]|gguf|^UD\b|UD-"
# Named here so that a table can count them: no constants of theirs are known.
_OTHERS = r"vllm|shimmy|sglang|flash-?moe|moe-infinity|tensorrt|\bmlx\b|powerinfer|hybrimoe|fiddler|krasis|mistral\.rs"


def engine_of(row: Row) -> tuple[str | None, str]:
    """The engine, and what was taken for granted; or None, and what was found in its place."""
    own = f"{row.knob} ; {row.knob_value}".lower()
    source = row.source.lower()
    named = next((engine for pattern, engine in _NAMED if re.search(pattern, own)), None)
    if named is not None:
        return named, ""
    other = re.search(_OTHERS, f"{own} {source}") if "kvcache-ai" not in source else None
    if other:
        return None, other[0]
    found = next((engine for pattern, engine in _SOURCES if re.search(pattern, source)), None)
    if found in ("nvmoe", "freetoken", "imp") and re.search(_LLAMA_WORDS, row.knob_value.lower()):
        return "llama_cpp", ""  # their baselines
    if found is not None:
        return found, ""
    if re.search(_IK_FORMATS, row.quant, re.IGNORECASE):
        return "ik_llama_cpp", ""
    if "exl3" in row.quant.lower():
        return "exllamav3", ""
    if re.search(_LLAMA_WORDS, own):
        return "llama_cpp", ""
    if re.search(_GGUF_FORMATS, row.quant, re.IGNORECASE):
        return "llama_cpp", "engine not said: llama.cpp, by the format of the weights"
    return None, row.source
