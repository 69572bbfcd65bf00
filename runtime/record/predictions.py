"""What predictors guess while a model runs, layer by layer, and how close they come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dali.policies.types import InputError
from dali.runtime.predict.predictors import Predictor
from dali.traces.expert_ids import predictor_name


class Predictions:
    """One forward pass after another: as each router is about to run, what was expected of it before.

    predictors  of different sources
    layers      MoE layers of the model

    Keeps the router inputs of the layers that predictions still need, no more.  In the first pass the routers
    called by themselves are compared with what the model did.
    """

    def __init__(self, predictors: Sequence[Predictor], layers: int) -> None:
        sources = [predictor.source for predictor in predictors]
        if len(set(sources)) < len(sources):
            raise InputError(f"predictors: found {', '.join(sources)}, expected each once")
        self._layers = layers
        self._ahead = max(p.ahead for p in predictors)
        if self._ahead >= layers:
            raise InputError(
                f"predictors: found {self._ahead} layers ahead, expected fewer than the {layers} MoE layers"
            )
        self._by_name = {predictor_name(p.source, h): (p, h) for p in predictors for h in range(1, p.ahead + 1)}
        self._routing = predictors[0].routing
        self._checked: set[int] = set()
        self.busy = False
        """Whether the model's routers run for a guess and not for the model."""
        self.begin()

    def begin(self) -> None:
        """A forward pass begins; what a pass that was cut off left is forgotten."""
        self.busy = False
        self._inputs: dict[int, Tensor] = {}
        self._ids: dict[str, dict[int, Tensor]] = {name: {} for name in self._by_name}
        self._cosine: dict[str, dict[int, Tensor]] = {name: {} for name in self._by_name}

    def read(self, layer: int, x: Tensor) -> None:
        """The router of `layer` is about to read x [N, hidden]: guess its choice from the layers before."""
        self._inputs.pop(layer - self._ahead - 1, None)
        self._inputs[layer] = x.clone()
        self.busy = True
        with torch.no_grad():
            for name, (predictor, h) in self._by_name.items():
                if layer - h in self._inputs:
                    self._guess(name, predictor, layer, h, x)
        self.busy = False

    def _guess(self, name: str, predictor: Predictor, layer: int, h: int, x: Tensor) -> None:
        guess = predictor.predict(layer - h, h, self._inputs[layer - h].to(x.device))
        self._ids[name][layer] = self._routing.choose(layer, guess)[0].int()
        self._cosine[name][layer] = cosine_similarity(guess.float(), x.float(), dim=-1)

    def check(self, layer: int, ids: Tensor) -> None:
        """The model chose ids [N, K]: raise InputError if its router, called by itself, did not (first pass only)."""
        if layer in self._checked or layer not in self._inputs:
            return
        self._checked.add(layer)
        self.busy = True
        self._routing.check(layer, self._inputs[layer], ids)
        self.busy = False

    def end(self, top_k: int) -> tuple[dict[str, NDArray[np.int32]], dict[str, NDArray[np.float64]]]:
        """Ids [N, L, K], -1 for none, and cosines [N, L], NaN for none, of the pass, by predictor name."""
        tokens = next(iter(self._inputs.values())).shape[0]
        ids = {name: self._stacked(found, (tokens, top_k), -1) for name, found in self._ids.items()}
        cosine = {name: self._stacked(found, (tokens,), np.nan) for name, found in self._cosine.items()}
        self.begin()
        return ids, {name: values.astype(np.float64) for name, values in cosine.items()}

    def _stacked(self, found: dict[int, Tensor], shape: tuple[int, ...], none: float) -> NDArray:
        """[N, L, ...] in one copy to the host."""
        first = next(iter(found.values()))
        empty = first.new_full(shape, none)
        parts = [found[layer].to(first.device) if layer in found else empty for layer in range(self._layers)]
        return torch.stack(parts, dim=1).cpu().numpy()
