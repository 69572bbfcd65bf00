"""Predictors for a recording: from a file, or fitted to text that the recording does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dali.experiments.models.prompts import CALIBRATION, read_texts, to_length
from dali.experiments.settings import read
from dali.policies.types import InputError
from dali.runtime.model.moe_layers import moe_layers
from dali.runtime.predict.fitting import Fitting
from dali.runtime.predict.predictors import SOURCES, GatePredictor, Predictor, Predictors, beside
from dali.runtime.predict.routing import Routing


@dataclass(frozen=True)
class FittedPredictors:
    """What to predict by, and on what to fit it: checked before anything is loaded.

    sources, ahead  predictors to record, and how many layers ahead; no source = nothing to do
    file            predictors fitted before, or None
    texts           to fit on otherwise; name says where they are from
    tokens          to fit on, at least
    """

    sources: tuple[str, ...]
    ahead: int
    file: str | None
    texts: tuple[str, ...]
    name: str
    tokens: int

    @classmethod
    def read(cls, config: DictConfig, recorded: Sequence[str]) -> FittedPredictors:
        """From the settings of `dali record`; `recorded` are its prompts, none of which may be fitted on."""
        sources = tuple(read.texts(config, "predictors")) if config.predictors else ()
        unknown = [source for source in sources if source not in SOURCES]
        if unknown:
            raise InputError(f"predictors: found {unknown[0]!r}, expected some of {', '.join(SOURCES)}")
        given = config.calibration
        file = None if given.file is None else read.text(config, "calibration.file")
        prompts = None if given.prompts is None else read.text(config, "calibration.prompts")
        texts = CALIBRATION if prompts is None else read_texts(prompts)
        shared = set(texts) & set(recorded)
        same_file = prompts is not None and config.prompts is not None and Path(prompts).samefile(config.prompts)
        if sources and file is None and (same_file or shared):
            found = config.prompts if same_file else f"{min(shared)[:40]!r}"
            raise InputError(f"calibration.prompts: found {found}, which is recorded too, expected other text")
        name = "built-in calibration prompts" if prompts is None else Path(prompts).name
        tokens = read.whole(config, "calibration.tokens")
        return cls(sources, read.whole(config, "ahead"), file, tuple(texts), name, tokens)

    def predictors(
        self, model: Any, name: str, output: Path, calibrate: Callable[[Fitting], None]
    ) -> tuple[list[Predictor], str]:
        """The predictors for a model called `name`, and what to say of them in the notes of a trace.

        Where they have to be fitted, calibrate(fitting) runs the model, and they are kept beside `output`.
        """
        layers = moe_layers(model)
        ahead = min(self.ahead, len(layers) - 1)
        if not self.sources or ahead == 0:
            return [], ""
        if set(self.sources) == {GatePredictor.source}:
            return [GatePredictor(Routing(layers), ahead)], ""
        if self.file is not None:
            found = Predictors.load(self.file, layers)
            if found.ahead != ahead:
                raise InputError(f"ahead: found {ahead}, expected {found.ahead} as in {self.file}")
        else:
            fitting = Fitting(layers, self.sources, ahead)
            calibrate(fitting)
            found = fitting.finish(name, self.name)
            found.save(beside(output))
        note = f"; predictors fitted to {found.origin.tokens} tokens of {found.origin.text}"
        return [found[source] for source in self.sources], note


def batches(
    texts: Sequence[Sequence[int]], tokens: int, prompt: int, length: int, batch: int
) -> Iterator[tuple[list[list[int]], int]]:
    """Sequences of `length` tokens, `tokens` or more in all: (ids of up to `batch` sequences, tokens to sample after).

    Pieces of the texts, evenly spread over them, go first; where they do not suffice, the first `prompt` tokens of
    each text are continued by the model, over and over.
    """
    count = -(-tokens // length)
    pieces = [text[at : at + length] for text in texts for at in range(0, len(text) - length + 1, length)]
    chosen = [list(pieces[i * len(pieces) // count]) for i in range(count)] if len(pieces) > count else pieces
    starts = [to_length(texts[i % len(texts)], prompt) for i in range(count - len(chosen))]
    for sequences, rest in ((chosen, 0), (starts, length - prompt)):
        for first in range(0, len(sequences), batch):
            yield [list(ids) for ids in sequences[first : first + batch]], rest
