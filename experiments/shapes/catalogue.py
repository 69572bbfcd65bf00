"""Models by name: the shapes of conf/model, found by what a table of results calls them."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from pathlib import Path

import yaml

from dali import conf
from dali.experiments.shapes.names import NAMES
from dali.policies.costs.model_shape import ModelShape
from dali.policies.types import InputError

# Words of a name that say how a model was trained or stored, and nothing of its shape.
_TRAINING = (
    "instruct", "inst", "thinking", "think", "chat", "base", "it", "reasoning", "preview", "exp", "terminus", "hf",
    "speciale", "gguf", "mtp", "moe", "abliterated", "uncensored", "heretic", "qat", "pt", "original",
)  # fmt: skip
_STORAGE = r"(ud-)?i?q\d+(-[a-z0-9]+)*|mxfp4|nvfp4|fp8|fp4|bf16|f16|int4|int8|awq|gptq|4bit|8bit"
# A size in the name that is further from the shape's than this factor is another model's: a distilled one.
_OTHER_SIZE = 1.5


def find_model(text: str) -> ModelShape:
    """The shape of the model that free text names: "Qwen3.5-35B-A3B", "DeepSeek-V3-0324 671B", "gpt-oss-120b".

    Dates, sizes, quantisations and owners are left out, so that fine-tunes of one architecture are its model.  Names of
    files of conf/model count too.  InputError, with near matches, for what names none, two, or one of another size.
    """
    if not text.strip():
        raise InputError("model: found nothing, expected a name such as Qwen3-30B-A3B")
    if re.search(r"\s/\s|,", text):
        raise InputError(f"model: found {text!r}, two models, expected one")
    known, plain = _known(), _plain(text)
    for name in sorted((name for name in known if f"{plain}-".startswith(f"{name}-")), key=len, reverse=True):
        if _is_sizes(plain[len(name) :], load_shape(known[name])):
            return load_shape(known[name])
    # Without the active weights: Qwen3-30B.
    longer = {file for name, file in known.items() if name.startswith(f"{plain}-a")}
    if len(longer) == 1 and re.search(r"\d[bt]$", plain):
        return load_shape(longer.pop())
    near = difflib.get_close_matches(plain, known, 4, 0.5)
    listed = sorted({NAMES[known[name]][0] for name in near}) or ["Qwen3-30B-A3B", "gpt-oss-120b", "DeepSeek-V3"]
    raise InputError(f"model: found {text!r}, expected one such as {', '.join(listed)}")


@lru_cache
def load_shape(name: str) -> ModelShape:
    """A file of conf/model by its name; InputError if there is none."""
    file = Path(conf.__file__).parent / "model" / f"{name}.yaml"
    if not file.is_file():
        raise InputError(f"model: found {name!r}, expected one of {', '.join(sorted(NAMES))}")
    # The C parser takes a tenth of the time.
    values = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return ModelShape(**{field: value for field, value in values.items() if not field.startswith("_")})


@lru_cache
def _known() -> dict[str, str]:
    """Files of conf/model by every name in plain spelling."""
    return {_plain(name): file for file, names in NAMES.items() for name in (*names, file)}


def _plain(text: str) -> str:
    """Small letters and hyphens, without what says nothing of the shape."""
    plain = re.sub(r"\b\d+(\.\d+)?\s*gi?b\b", "", text.strip().lower())
    plain = re.sub(r"^[\w.-]+/(?=\S)", "", plain)
    plain = re.sub(r"(?<=\d[bt])\.(?=a\d)", "-", re.sub(r"[\s_():-]+", "-", plain))
    plain = re.sub(r"-(\d{4}|\d{6}|v0\.\d)(?=-|$)", "", plain)
    plain = re.sub(rf"-({_STORAGE})(?=-|$)", "", plain)
    words = [word for word in plain.split("-") if word and word not in _TRAINING]
    return "-".join(words)


def _is_sizes(rest: str, shape: ModelShape) -> bool:
    """Whether what follows a name is nothing or total and active weights, the total about the shape's own."""
    if not re.fullmatch(r"(-\d+(\.\d+)?[bt])?(-a\d+(\.\d+)?[bm])?", rest):
        return False
    total = re.match(r"-(\d+(?:\.\d+)?)([bt])", rest)
    found = shape.total_params if total is None else float(total[1]) * (1e12 if total[2] == "t" else 1e9)
    return 1 / _OTHER_SIZE < found / shape.total_params < _OTHER_SIZE
