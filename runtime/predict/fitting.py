"""Fit predictors to calibration tokens that pass by: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dali.policies.types import InputError
from dali.runtime.model.experts_hook import reading
from dali.runtime.model.moe_layers import MoeLayer
from dali.runtime.predict.predictors import SOURCES, PredictorOrigin, Predictors, features, shape_of
from dali.runtime.predict.routing import Routing
from dali.traces import tensor_file

# Tokens whose products are taken together: one token at a time would move a hidden x hidden matrix for each.
_BLOCK = 1024
# Of these many tokens, one is held out to choose the penalty by; at most so many are kept.
_HOLD_OUT, _HELD = 8, 4096
# Share of its squared mean below which the variance of a feature is rounding, and share of the mean variance of
# all below which it is too small to tell anything (weights of an expert that is only ever a last choice).
_NOISE, _SMALL = 1e-7, 1e-6
_HALF_MAX = float(np.finfo(np.float16).max)
# Of slopes per standard deviation, relative to the sum of squares; the first leaves little but the residual.
PENALTIES = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)


class Fitting:
    """Statistics of router inputs from which `finish` makes `Predictors`.

    layers   the model's MoE layers
    sources  of `SOURCES`; the residual is always fitted
    ahead    layers ahead, below the number of layers

    `watching` takes in a running model, `observe` the router inputs of one step.  Memory: the means, and for ridge
    a matrix of (hidden + E)^2 numbers in float32 a layer, on the host, and up to 4096 tokens held out.

    Raises InputError for sources that are not known, and for routers that are no single matrix.
    """

    def __init__(
        self, layers: Sequence[MoeLayer], sources: Sequence[str], ahead: int, routing: Routing | None = None
    ) -> None:
        unknown = [source for source in sources if source not in SOURCES]
        if unknown:
            raise InputError(f"predictors: found {unknown[0]!r}, expected of {', '.join(SOURCES)}")
        if not 1 <= ahead < len(layers):
            raise InputError(f"ahead: found {ahead}, expected 1 to {len(layers) - 1} for {len(layers)} MoE layers")
        self._layers, self._ahead = list(layers), ahead
        self._shape = shape_of(layers)
        self._routing = Routing(layers) if routing is None else routing
        self._mean = np.zeros((len(layers) - 1, self._shape["hidden"]))
        self._ridge = _Ridge(self._layers, self._routing, ahead) if "ridge" in sources else None
        self._waiting: list[list[Tensor]] = []
        self.tokens = 0
        """Tokens observed."""

    @contextmanager
    def watching(self, model: nn.Module, on_step: Callable[[int], None] | None = None) -> Iterator[None]:
        """Observe every forward pass of the model inside the block; on_step gets the tokens each had."""
        step: dict[int, Tensor] | None = None

        def begin(*_: Any) -> None:
            nonlocal step
            step = {}

        def read(number: int, x: Tensor) -> None:
            if step is not None:
                step[number] = x.clone()

        def end(*_: Any) -> None:
            # First: what is observed may call routers.
            nonlocal step
            found, step = step or {}, None
            for number, layer in enumerate(self._layers):
                if number not in found:
                    raise InputError(f"{layer.name}: found no call of its router, expected every MoE layer to run")
            self.observe([found[number] for number in range(len(self._layers))])
            if on_step is not None:
                on_step(len(found[0]))

        with ExitStack() as stack:
            stack.enter_context(reading(self._layers, read))
            stack.callback(model.register_forward_pre_hook(begin).remove)
            stack.callback(model.register_forward_hook(end).remove)
            yield

    def observe(self, inputs: Sequence[Tensor]) -> None:
        """Take in what the router of each layer read in one step: L tensors [N, hidden]."""
        self._waiting.append(list(inputs))
        self.tokens += len(inputs[0])
        if sum(len(step[0]) for step in self._waiting) >= _BLOCK:
            self._flush()

    def finish(self, model: str, text: str) -> Predictors:
        """The predictors; `model` and `text` say what they come from.  InputError if no token was observed."""
        self._flush()
        if self.tokens == 0:
            raise InputError("calibration: found no token, expected some")
        origin = PredictorOrigin(model=model, text=text, tokens=self.tokens, ahead=self._ahead, **self._shape)
        arrays = {"residual": self._mean.astype(np.float32)}
        if not np.isfinite(self._mean).all():
            raise InputError("calibration: found router inputs that are not finite")
        if self._ridge is not None:
            arrays |= self._ridge.solve()
        return Predictors(self._layers, origin, arrays, self._routing)

    def _flush(self) -> None:
        steps, self._waiting = self._waiting, []
        if not steps:
            return
        inputs = [torch.cat([step[layer] for step in steps]) for layer in range(len(self._layers))]
        seen, added = self.tokens - len(inputs[0]), len(inputs[0])
        for layer, mean in enumerate(self._mean):
            change = _change(inputs[layer], inputs[layer + 1]).double().mean(dim=0).cpu().numpy()
            # A running mean: its terms stay of the size of what is averaged, however many there are.
            mean += (change - mean) * (added / (seen + added))
        if self._ridge is not None:
            self._ridge.add(inputs)


def _change(x: Tensor, later: Tensor) -> Tensor:
    """float32 [N, hidden], later - x on the device of x."""
    return later.to(x.device).float() - x.float()


class _Ridge:
    """Ridge regression of the change of each later router's logits on `features` of a layer's router input."""

    def __init__(self, layers: Sequence[MoeLayer], routing: Routing, ahead: int) -> None:
        self._routing, self._ahead = routing, ahead
        self._weights = [layer.router_weight.detach() for layer in layers]
        self._experts, hidden = self._weights[0].shape
        later = [min(ahead, len(layers) - 1 - layer) for layer in range(len(layers) - 1)]
        self._sums = [_Sums(hidden + self._experts, self._experts * count) for count in later]
        self._held: list[list[Tensor]] = []

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Take in a block of tokens, [N, hidden] for each layer; the last eighth is held out."""
        room = _HELD - sum(len(block[0]) for block in self._held)
        held = min(len(inputs[0]) // _HOLD_OUT, room)
        if held:
            # Copies: a view would keep its whole block.
            self._held.append([x[-held:].clone().cpu() for x in inputs])
        self._count([x[: len(x) - held] for x in inputs])

    def _count(self, inputs: Sequence[Tensor]) -> None:
        for layer, sums in enumerate(self._sums):
            sums.add(*self._pair(inputs, layer))

    def _pair(self, inputs: Sequence[Tensor], layer: int) -> tuple[Tensor, Tensor]:
        """Features float32 [N, F], and for each h the change of logits, side by side: float32 [N, h * E]."""
        x, changes = inputs[layer].to(self._weights[layer].device), []
        for later in range(layer + 1, min(layer + self._ahead, len(inputs) - 1) + 1):
            change = _change(x, inputs[later])
            changes.append(change @ self._weights[later].to(change).T)
        return features(self._routing, layer, x, self._experts).float(), torch.cat(changes, dim=1)

    def solve(self) -> tensor_file.Arrays:
        """The arrays of `RidgePredictor`, and the penalties; zero beyond the last layer."""
        penalty = self._choose()
        for block in self._held:
            self._count(block)
        layers, width = len(self._sums) + 1, self._sums[0].width
        slope = np.zeros((self._ahead, layers, self._experts, width), np.float16)
        shift = np.zeros((self._ahead, layers, self._experts), np.float32)
        for layer, sums in enumerate(self._sums):
            count = min(self._ahead, layers - 1 - layer)
            for chosen in np.unique(penalty[:count, layer]):
                found = sums.slope(float(chosen)).T.numpy().reshape(count, self._experts, width)
                which = np.flatnonzero(penalty[:count, layer] == chosen)
                if np.abs(found[which]).max(initial=0) > _HALF_MAX:
                    raise InputError("ridge: found slopes beyond half precision, expected router inputs of about 1")
                slope[which, layer] = found[which]
            # To the slope as it is kept, rounded.
            shift[:, layer] = -(slope[:, layer].astype(np.float64) @ sums.mean.numpy())
        return {"ridge.slope": slope, "ridge.shift": shift, "ridge.penalty": penalty}

    def _choose(self) -> NDArray[np.float32]:
        """[ahead, L], the penalty with the smallest squared error on the tokens held out; the largest without any."""
        penalty = np.full((self._ahead, len(self._sums) + 1), PENALTIES[0], np.float32)
        held = [torch.cat(parts) for parts in zip(*self._held, strict=True)]
        for layer, sums in enumerate(self._sums if held else []):
            x, changes = self._pair(held, layer)
            errors = [sums.errors(value, x.cpu(), changes.cpu()) for value in PENALTIES]
            best = torch.stack(errors).view(len(PENALTIES), -1, self._experts).sum(dim=2).argmin(dim=0)
            penalty[: len(best), layer] = np.array(PENALTIES)[best.numpy()]
        return penalty


class _Sums:
    """Sums over tokens of `width` features and `targets` numbers, the features about a first guess of their mean."""

    def __init__(self, width: int, targets: int) -> None:
        self.width, self.count = width, 0
        self._center = torch.zeros(width)
        self._x, self._xx = torch.zeros(width), torch.zeros(width, width)
        self._y, self._xy = torch.zeros(targets), torch.zeros(width, targets)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x [N, width] and y [N, targets]; products on their device, sums on the host."""
        if self.count == 0:
            self._center = x.mean(dim=0).cpu()
        x = x - self._center.to(x.device)
        self.count += len(x)
        for total, added in (
            (self._x, x.sum(dim=0)),
            (self._xx, x.T @ x),
            (self._y, y.sum(dim=0)),
            (self._xy, x.T @ y),
        ):
            total += added.cpu()

    @property
    def mean(self) -> Tensor:
        """float64 [width], of the features."""
        return self._center.double() + self._x.double() / self.count

    def slope(self, penalty: float) -> Tensor:
        """float64 [width, targets], ridge regression of the targets on the features, both about their means."""
        x, y = self._x.double() / self.count, self._y.double() / self.count
        covariance = self._xx.double() / self.count - torch.outer(x, x)
        # What hardly varies must not be blown up to the size of the others.
        variance = covariance.diagonal().clamp(min=0)
        floor = _NOISE * self._center.double().square() + _SMALL * variance.mean() + torch.finfo(torch.float32).tiny
        spread = (variance + floor).sqrt()
        correlation = covariance / torch.outer(spread, spread)
        factor = torch.linalg.cholesky(correlation + penalty * torch.eye(self.width, dtype=x.dtype))
        together = self._xy.double() / self.count - torch.outer(x, y)
        return torch.cholesky_solve(together / spread[:, None], factor) / spread[:, None]

    def errors(self, penalty: float, x: Tensor, y: Tensor) -> Tensor:
        """float64 [targets], mean squared error on other tokens x [N, width] and y [N, targets], on the host."""
        expected = self._y.double() / self.count + (x.double() - self.mean) @ self.slope(penalty)
        return (y.double() - expected).square().mean(dim=0)
