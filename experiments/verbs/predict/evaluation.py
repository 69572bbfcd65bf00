"""`dali predict`: how well each predictor of a trace foresees the routing, and three that need ids alone.

Definitions of the metrics: `traces.recall`.  Intervals are bootstrap percentile intervals of 95 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.settings import read
from dali.policies.columns import DECODE, PHASES
from dali.policies.types import Floats, InputError
from dali.traces import recall
from dali.traces.expert_ids import predictor_name
from dali.traces.recall import Tally
from dali.traces.trace import Trace

PER_TOKEN, COSINE, ALL = "recall_topk", "cosine", "all"
FREQUENCY, PREVIOUS, RANDOM = "frequency", "previous", "random"
COMPUTED = (FREQUENCY, PREVIOUS, RANDOM)
BASELINES = ("residual", "gate", FREQUENCY)
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class EvaluationSettings:
    """What can be set, checked."""

    phase: str
    batches: list[int]
    sizes: list[int]
    ahead: int
    baseline: str | None
    count: int
    seed: int

    @classmethod
    def read(cls, config: DictConfig) -> EvaluationSettings:
        """InputError in one line for what cannot be."""
        phase = read.text(config, "phase")
        if phase not in PHASES:
            raise InputError(f"phase: found {phase!r}, expected {' or '.join(PHASES)}")
        return cls(
            phase,
            sorted(read.wholes(config, "batch")),
            sorted(read.wholes(config, "top")),
            read.whole(config, "ahead"),
            None if config.baseline is None else read.text(config, "baseline"),
            read.whole(config, "resamples", 2),
            read.whole(config, "seed", 0),
        )


@dataclass
class Evaluation:
    """All predictors of a trace at all batch sizes.

    notes  what a reader of the results has to know, once `results` has run
    """

    trace: Trace
    settings: EvaluationSettings
    notes: list[str] = field(default_factory=list)
    _drawn: dict[int, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        trace, settings = self.trace, self.settings
        if max(settings.sizes) > trace.experts_count:
            raise InputError(
                f"top: found {max(settings.sizes)}, expected 1 to the {trace.experts_count} experts of a layer"
            )
        if trace.layers < 2:
            raise InputError("trace: found 1 MoE layer, expected 2 or more: nothing comes before layer 0")
        if settings.baseline not in (None, *self.names):
            raise InputError(f"baseline: found {settings.baseline!r}, expected one of {', '.join(self.names)}")
        if not self.groups:
            raise InputError(
                f"batch: found {_commas(settings.batches)}, expected at most the {self.sequences} sequences "
                f"of the trace that have tokens of {settings.phase}"
            )
        self._say_what_is_missing()

    @cached_property
    def sequences(self) -> int:
        """Sequences that have tokens of the phase."""
        return len(recall.groups(self.trace, 1, self.settings.phase))

    @cached_property
    def groups(self) -> dict[int, list[recall.SequenceGroup]]:
        """By batch size, for those that the trace has enough sequences for."""
        made = {batch: recall.groups(self.trace, batch, self.settings.phase) for batch in self.settings.batches}
        return {batch: found for batch, found in made.items() if found}

    @cached_property
    def recorded(self) -> dict[str, str]:
        """Recorded sources by the name they are shown under."""
        return {f"{name} (recorded)" if name in COMPUTED else name: name for name in self.trace.sources}

    @cached_property
    def names(self) -> list[str]:
        """All predictors, recorded ones first; nothing is known from a previous step in prefill."""
        return [*self.recorded, *(name for name in COMPUTED if name != PREVIOUS or self.settings.phase == DECODE)]

    @cached_property
    def distances(self) -> range:
        """Layers ahead: as far as some source goes."""
        farthest = max(self.trace.sources.values(), default=1)
        return range(1, min(self.settings.ahead, farthest, self.trace.layers - 1) + 1)

    @cached_property
    def baseline(self) -> str:
        """What the others are compared with."""
        return self.settings.baseline or next(name for name in BASELINES if name in self.names)

    def results(self) -> pd.DataFrame:
        """One row a predictor, distance, batch size, metric and layer ("all" = all layers that can be predicted).

        Columns `value`, `low`, `high`; and for layer "all" `gain`, `gain_low`, `gain_high`: over the baseline, on
        the same resamples of `clusters` clusters.  `batch` is 0 for the cosine, which is of whole sequences.
        """
        parts: list[Columns] = []
        with tqdm(total=len(self.groups) * len(self.names), unit="predictor", desc="evaluating", disable=None) as bar:
            for batch in self.groups:
                by_name: dict[tuple[str, int], dict[str, Tally]] = {}
                for name in self.names:
                    bar.set_postfix_str(f"batch {batch}, {name}")
                    by_name |= {(name, ahead): tallies for ahead, tallies in self._tallies(name, batch)}
                    bar.update()
                parts += self._estimates(by_name, batch)
        parts += self._estimates(self._cosines(), None)
        return pd.DataFrame({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})

    def _tallies(self, name: str, batch: int) -> Iterator[tuple[int, dict[str, Tally]]]:
        """Per distance, the tallies of all metrics; what needs ids alone is the same at any distance."""
        if name in self.recorded:
            source = self.recorded[name]
            for ahead in self.distances[: self.trace.sources[source]]:
                yield ahead, self._measure(batch, self.trace.predicted[predictor_name(source, ahead)])
            return
        same: dict[str, Tally] = {}
        if name == RANDOM:
            same = self._measure(batch, None)
        elif name == PREVIOUS:
            same = self._measure(batch, recall.previous(self.trace))
        else:
            scores = self._popularity[batch]
            if scores is not None:
                same = self._measure(batch, recall.most_popular(self.trace, self.groups[batch], scores), scores)
        if same:
            yield from ((ahead, same) for ahead in self.distances)

    def _measure(self, batch: int, guess: np.ndarray | None, scores: Floats | None = None) -> dict[str, Tally]:
        groups = self.groups[batch]
        counted = guess if scores is None else None
        tops = recall.workload_tallies(self.trace, groups, self.settings.sizes, counted, scores)
        return {PER_TOKEN: recall.token_tally(self.trace, groups, guess)} | {
            f"recall_top{size}": tally for size, tally in tops.items()
        }

    @cached_property
    def _popularity(self) -> dict[int, Floats | None]:
        """Scores by batch size; notes say what they are measured on."""
        scores: dict[int, Floats | None] = {}
        on: dict[str, list[int]] = {}
        for batch, groups in self.groups.items():
            found = recall.popularity_scores(self.trace, groups, self.settings.phase)
            scores[batch] = None if found is None else found[0]
            if found is None:
                on.setdefault("left out, as no sequences remain", []).append(batch)
            elif found[1]:
                on.setdefault("on the sequences outside of the batch", []).append(batch)
            else:
                on.setdefault("on the batch's own prompts, as no other sequences remain", []).append(batch)
        where = "; ".join(f"at batch {_commas(batches)} {what}" for what, batches in on.items())
        self.notes.append(f"{FREQUENCY.capitalize()} is measured {where}.")
        return scores

    def _cosines(self) -> dict[tuple[str, int], dict[str, Tally]]:
        found = {}
        for label, source in self.recorded.items():
            for ahead in self.distances:
                name = predictor_name(source, ahead)
                if name in self.trace.cosine:
                    found[label, ahead] = {COSINE: recall.cosine_tally(self.trace.cosine[name])}
        return found

    def _estimates(
        self, by_name: Mapping[tuple[str, int], Mapping[str, Tally]], batch: int | None
    ) -> Iterator[Columns]:
        for (name, ahead), tallies in by_name.items():
            compared = by_name.get((self.baseline, ahead), {}) if name != self.baseline else {}
            for metric, tally in tallies.items():
                columns = self._estimate(tally, compared.get(metric), ahead)
                same = {
                    "predictor": name,
                    "ahead": ahead,
                    "batch": batch or 0,
                    "phase": self.settings.phase if batch else ALL,
                    "metric": metric,
                    "clusters": len(tally.hits),
                }
                yield {key: np.full(columns["layer"].size, value) for key, value in same.items()} | columns

    def _estimate(self, tally: Tally, baseline: Tally | None, first_layer: int) -> Columns:
        """One row a layer, then one for all."""
        draws = self._resamples(len(tally.hits))
        value, replicates = tally.shares(first_layer), tally.shares(first_layer, draws)
        low, high = recall.interval(replicates)
        gain, gain_low, gain_high = np.full((3, value.size), np.nan)
        if baseline is not None:
            gain[-1] = value[-1] - baseline.shares(first_layer)[-1]
            paired = replicates[:, -1] - baseline.shares(first_layer, draws)[:, -1]
            gain_low[-1], gain_high[-1] = recall.interval(paired)
        return {
            "layer": np.array([*map(str, range(first_layer, self.trace.layers)), ALL]),
            "value": value,
            "low": low,
            "high": high,
            "gain": gain,
            "gain_low": gain_low,
            "gain_high": gain_high,
        }

    def _resamples(self, clusters: int) -> Floats:
        """The same for all predictors, so that they can be compared pair by pair."""
        if clusters not in self._drawn:
            self._drawn[clusters] = recall.resamples(clusters, self.settings.count, self.settings.seed)
        return self._drawn[clusters]

    def _say_what_is_missing(self) -> None:
        trace, phase = self.trace, self.settings.phase
        if trace.metadata.text == "synthetic":
            self.notes.append(
                "Routing is generated, and its predictors err as often as they were told to: no measurement."
            )
        if not trace.sources:
            self.notes.append("The trace has no recorded predictor: only those that need ids alone are evaluated.")
        left_out = [batch for batch in self.settings.batches if batch not in self.groups]
        if left_out:
            self.notes.append(
                f"Batch {_commas(left_out)}: left out, {self.sequences} sequences have tokens of {phase}."
            )
        if self.sequences < recall.FEW_GROUPS:
            self.notes.append(f"Only {self.sequences} sequences: intervals of a token's recall are too narrow.")
        few = [batch for batch, groups in self.groups.items() if len(groups) < recall.FEW_GROUPS]
        if few:
            what = f"resample stretches of {recall.BLOCK} steps of a batch and leave out how texts differ"
            self.notes.append(
                f"Batch {_commas(few)}: fewer than {recall.FEW_GROUPS} batches, so intervals of workload metrics "
                f"{what if phase == DECODE else 'rest on little'}."
            )
        beyond = [size for size in self.settings.sizes if size > trace.top_k]
        if beyond and 1 in self.groups and phase == DECODE:
            self.notes.append(
                f"Top {_commas(beyond)} at batch 1: {FREQUENCY} and {RANDOM} may guess as many units, the others only "
                f"the {trace.top_k} that they name."
            )


def _commas(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
