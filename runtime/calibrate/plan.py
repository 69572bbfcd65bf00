"""What a calibration measures: the points, and how often each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dali.policies.types import InputError
from dali.runtime.calibrate.link import sizes_around
from dali.runtime.calibrate.probe import COPY, CPU, GPU, Part, Probe, Shot, rows

TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
MAX_TOKENS = 8192
_LARGEST = 1 << 30


@dataclass(frozen=True)
class CalibrationSettings:
    """What to measure, and how often.

    tokens    numbers of tokens of a unit; those whose pass takes longer than `longest` seconds are left out
    batches, contexts  decode steps of the dense part: sequences, and positions before the step
    prefill   tokens of prefill steps, of one sequence and of four
    rounds    samples of each point; copies in a row for each sample of a copy
    """

    tokens: Sequence[int] = TOKENS
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    contexts: Sequence[int] = (32, 256)
    prefill: Sequence[int] = (16, 64, 256, 1024)
    rounds: int = 15
    longest: float = 1.0
    copies: int = 12

    def __post_init__(self) -> None:
        for name in ("tokens", "batches", "contexts", "prefill"):
            values = list(getattr(self, name))
            if not values or sorted(set(values)) != values or values[0] < 1 or values[-1] > MAX_TOKENS:
                raise InputError(f"{name}: found {values}, expected rising numbers from 1 to {MAX_TOKENS}")
        if len(self.contexts) < 2:
            raise InputError(f"contexts: found {list(self.contexts)}, expected two or more")
        if self.tokens[0] != 1:
            raise InputError(f"tokens: found {list(self.tokens)}, expected 1 to be the first")
        if min(self.rounds, self.copies) < 2 or self.longest <= 0:
            raise InputError(
                f"rounds, copies, longest: found {self.rounds}, {self.copies}, {self.longest}, expected 2 or more of "
                "the first two and the last above 0"
            )


class CalibrationPlan:
    """The points of a calibration of a probe's model."""

    def __init__(self, probe: Probe, settings: CalibrationSettings) -> None:
        self.probe, self.settings = probe, settings
        copies = probe.most_copies
        self.levels = {GPU: _doubling(probe.resident), CPU: _doubling(probe.count), COPY: _doubling(copies)}
        self.shots: dict[str, Shot] = {}
        for where, levels in self.levels.items():
            for experts in levels:
                self.shots[f"{where} {experts} x 1"] = (Part(where, experts, 1),)
        self.by_tokens: dict[str, dict[int, int]] = {CPU: {}, GPU: {}}
        for where, points in self.by_tokens.items():
            for tokens in settings.tokens:
                points[tokens] = experts = self._experts(where, tokens)
                self.shots[f"{where} {experts} x {tokens}"] = (Part(where, experts, tokens),)
        self.both = max(n for n in self.levels[GPU] if n <= min(2 * probe.top, probe.count - probe.resident))
        self.shots["both"] = (Part(CPU, self.both, 1), Part(GPU, self.both, 1))
        self.sizes = sizes_around(probe.layout.block_bytes, _LARGEST)
        self.decode = [(batch, context) for batch in settings.batches for context in settings.contexts]
        self.beside = [(batch, settings.contexts[0]) for batch in settings.batches]
        self.prefill = sorted(
            {(1, tokens) for tokens in settings.prefill}
            | {(4, tokens // 4) for tokens in settings.prefill if tokens >= 16}
        )

    def _experts(self, where: str, tokens: int) -> int:
        """As many experts as a batch would use, within the tokens of a layer step; half stay free to be copied."""
        top, most = self.probe.top, min(4 * self.probe.top, self.probe.count // 2)
        fitting = [n for n in self.levels[where] if rows(n, tokens, top) <= MAX_TOKENS and n <= most]
        return fitting[-1] if fitting else self.levels[where][0]

    def describe(self) -> list[tuple[str, str, int]]:
        """What is measured: name, points in words, and their number."""
        settings, layers = self.settings, len(self.probe.layers)
        tokens = f"{settings.tokens[0]} to {settings.tokens[-1]} tokens"
        return [
            ("CPU unit", f"{tokens}, idle and while copies run", 2 * len(settings.tokens)),
            ("GPU unit", f"{tokens}, idle; one point while copies run", len(settings.tokens) + 1),
            (
                "overheads",
                f"layer steps of {layers} layers by number of units",
                sum(map(len, self.levels.values())) + 1,
            ),
            (
                "copies",
                f"{len(self.sizes)} sizes besides a unit's, 1 and 2 outstanding, idle and beside CPU units",
                4 * len(self.sizes),
            ),
            (
                "dense part",
                f"decode batches {list(settings.batches)} x contexts {list(settings.contexts)}",
                len(self.decode),
            ),
            ("dense part", f"the same beside copies, context {settings.contexts[0]}", len(self.beside)),
            ("dense part", f"prefill tokens {list(settings.prefill)}, 1 and 4 sequences", len(self.prefill)),
            ("pieces", "read-back, launch, merge, activations", 4),
        ]


def _doubling(most: int) -> list[int]:
    found = [1]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return found
