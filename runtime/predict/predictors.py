"""What later routers will read, guessed from what a router reads now; and the file of fitted predictors."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dali.policies.types import InputError
from dali.runtime.model.moe_layers import MoeLayer
from dali.runtime.predict.routing import Routing
from dali.traces import tensor_file

FORMAT = "dali-predictors"
_VERSION = "1"
# Directions of a router's matrix below this share of its largest hardly move its choice; to reach them would
# take large changes of its input.
_RANK = 1e-3


class Predictor:
    """Predicts what the router of MoE layer `layer + h` will read, and with that what it will choose.

    source   name in traces and in prefetch policies
    routing  the model's routers
    ahead    how many layers ahead it goes: 1 <= h <= ahead, layer + h < L

    `predict` is a few tensor operations on the device of x, without a host synchronisation once the tensors
    it uses are there (`place`).
    """

    source: ClassVar[str]

    def __init__(self, routing: Routing, ahead: int) -> None:
        self.routing = routing
        self.ahead = ahead

    def predict(self, layer: int, h: int, x: Tensor) -> Tensor:
        """[N, hidden], what the router of `layer + h` is expected to read when that of `layer` reads x [N, hidden]."""
        raise NotImplementedError

    def choose(self, layer: int, h: int, x: Tensor) -> Tensor:
        """Ids [N, K] that the model's own router of `layer + h` chooses for `predict(layer, h, x)`."""
        return self.routing.choose(layer + h, self.predict(layer, h, x))[0]

    def place(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Bring what `predict` needs to a device ahead of its first use there."""


class GatePredictor(Predictor):
    """Raw next-layer gate: what the router reads now, as it is (HybriMoE, arXiv 2504.05897)."""

    source = "gate"

    def predict(self, layer: int, h: int, x: Tensor) -> Tensor:
        """x itself."""
        return x


class _Fitted(Predictor):
    """A predictor with tensors by (layer, h), copied once to each device and type they are used in."""

    def __init__(self, routing: Routing, ahead: int, residual: NDArray[np.float32]) -> None:
        super().__init__(routing, ahead)
        self.residual = residual
        self._placed: dict[tuple[int, int, torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def place(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """See `Predictor.place`."""
        for layer in range(len(self.routing)):
            for h in range(1, min(self.ahead, len(self.routing) - 1 - layer) + 1):
                self._at(layer, h, torch.device(device), dtype)

    def _at(self, layer: int, h: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        key = (layer, h, device, dtype)
        if key not in self._placed:
            self._placed[key] = tuple(tensor.to(device, dtype) for tensor in self._tensors(layer, h))
        return self._placed[key]

    def _tensors(self, layer: int, h: int) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _summed(self, layer: int, h: int) -> Tensor:
        """float64 [hidden], the residual over h layers."""
        return torch.from_numpy(self.residual[layer : layer + h].sum(axis=0, dtype=np.float64))


class ResidualPredictor(_Fitted):
    """DALI's residual vectors: x plus the mean over calibration tokens of what later layers add to it.

    residual  float32 [L - 1, hidden], mean of h[l+1] - h[l] (arXiv 2602.03495, residual-based prefetching);
              for h layers ahead, h of them are added up
    """

    source = "residual"

    def predict(self, layer: int, h: int, x: Tensor) -> Tensor:
        """See `Predictor.predict`."""
        return x + self._at(layer, h, x.device, x.dtype)[0]

    def _tensors(self, layer: int, h: int) -> tuple[Tensor, ...]:
        return (self._summed(layer, h),)


class RidgePredictor(_Fitted):
    """The residual, and what the later router's logits are still off by, from a ridge regression (our own).

    residual  as in `ResidualPredictor`
    slope     float16 [ahead, L, E, hidden + E] and shift float32 [ahead, L, E]: at (h - 1, l), the change of the
              logits of layer l + h, W (h[l+h] - h[l] - residual), W = [E, hidden] the matrix of its router, as a
              linear function of `features` of h[l]

    A large penalty leads back to the residual.  The predicted change of the logits is brought to the router's
    input by the pseudo-inverse of W, so that the model's router still chooses, with its bias, groups and
    corrections.  Costs about three routers.
    """

    source = "ridge"

    def __init__(
        self,
        layers: Sequence[MoeLayer],
        routing: Routing,
        ahead: int,
        residual: NDArray[np.float32],
        slope: NDArray[np.float16],
        shift: NDArray[np.float32],
    ) -> None:
        super().__init__(routing, ahead, residual)
        self.slope, self.shift = slope, shift
        self._weights = [layer.router_weight.detach() for layer in layers]
        self._lifts: dict[int, Tensor] = {}

    def predict(self, layer: int, h: int, x: Tensor) -> Tensor:
        """See `Predictor.predict`."""
        offset, slope, lift = self._at(layer, h, x.device, x.dtype)
        change = features(self.routing, layer, x, slope.shape[1]) @ slope
        return torch.addmm(x + offset, change, lift)

    def _tensors(self, layer: int, h: int) -> tuple[Tensor, ...]:
        lift = self._lift(layer + h)
        offset = self._summed(layer, h) + torch.from_numpy(self.shift[h - 1, layer]).double() @ lift
        return offset, torch.from_numpy(self.slope[h - 1, layer]).T, lift

    def _lift(self, layer: int) -> Tensor:
        """float64 [E, hidden], transposed pseudo-inverse of the router's matrix."""
        if layer not in self._lifts:
            self._lifts[layer] = torch.linalg.pinv(self._weights[layer].cpu().double(), rtol=_RANK).T
        return self._lifts[layer]


def features(routing: Routing, layer: int, x: Tensor, experts: int) -> Tensor:
    """What ridge regresses on: x, and the weights that the layer's own router gives its experts, [N, hidden + E].

    The outputs of the chosen experts are what sets one token's change apart from another's.
    """
    ids, weights = routing.choose(layer, x)
    # Ids of no expert (tokens that a model drops) count in a column of their own, which goes.
    known = torch.where((ids < 0) | (ids > experts), experts, ids.long())
    gates = torch.zeros(x.shape[0], experts + 1, dtype=x.dtype, device=x.device)
    return torch.cat([x, gates.scatter_(1, known, weights.to(x.dtype))[:, :experts]], dim=1)


SOURCES: tuple[str, ...] = tuple(kind.source for kind in (GatePredictor, ResidualPredictor, RidgePredictor))


@dataclass(frozen=True)
class PredictorOrigin:
    """What fitted predictors come from, as the strings of their file.

    model    id of the model or name of its folder
    text     source of the calibration text
    tokens   calibration tokens
    ahead    layers ahead
    layers, experts, hidden, routers  of the model: MoE layers, experts, router input width, digest of the routers'
             matrices (rounded to bfloat16, so that the type a model is loaded in makes no difference)
    """

    model: str
    text: str
    tokens: int
    ahead: int
    layers: int
    experts: int
    hidden: int
    routers: str


class Predictors(Mapping[str, Predictor]):
    """The predictors of one model by source: "gate", and what was fitted of "residual" and "ridge".

    origin  what they were fitted on
    arrays  what was fitted: "residual", and for ridge "ridge.slope", "ridge.shift" and "ridge.penalty", float32
            [ahead, L], the penalty chosen (see `runtime.predict.fitting`)
    """

    def __init__(
        self,
        layers: Sequence[MoeLayer],
        origin: PredictorOrigin,
        arrays: tensor_file.Arrays,
        routing: Routing | None = None,
    ) -> None:
        self.origin, self.arrays = origin, arrays
        self.ahead = origin.ahead
        routing = Routing(layers) if routing is None else routing
        found: list[Predictor] = [GatePredictor(routing, origin.ahead)]
        if "residual" in arrays:
            found.append(ResidualPredictor(routing, origin.ahead, arrays["residual"]))
        if "ridge.slope" in arrays:
            ridge = (arrays["residual"], arrays["ridge.slope"], arrays["ridge.shift"])
            found.append(RidgePredictor(layers, routing, origin.ahead, *ridge))
        self._by_source = {predictor.source: predictor for predictor in found}

    def __getitem__(self, source: str) -> Predictor:
        if source not in self._by_source:
            raise InputError(f"predictor: found {source!r}, expected one of {', '.join(self._by_source)}")
        return self._by_source[source]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_source)

    def __len__(self) -> int:
        return len(self._by_source)

    def save(self, path: str | Path) -> None:
        """Write them as one .safetensors file, whole or not at all; OSError naming it where the disk refuses."""
        strings = {name: str(value) for name, value in asdict(self.origin).items()}
        try:
            tensor_file.write(path, self.arrays, {"format": FORMAT, "format_version": _VERSION, **strings})
        except OSError as error:
            reason = error.strerror or f"cannot be written ({error})"
            raise OSError(error.errno or errno.EIO, reason, str(path)) from None

    @classmethod
    def load(cls, path: str | Path, layers: Sequence[MoeLayer]) -> Predictors:
        """Those of a file; InputError unless they were fitted for a model with these MoE layers."""
        arrays, strings = tensor_file.read(path, FORMAT)
        try:
            origin = _origin(strings)
            _check_model(origin, layers)
            _check_arrays(origin, arrays)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return cls(layers, origin, arrays)


def beside(trace: str | Path) -> Path:
    """Where the predictors of a trace file are kept: `<trace stem>.predictors.safetensors`."""
    return Path(trace).with_suffix(".predictors.safetensors")


def shape_of(layers: Sequence[MoeLayer]) -> dict[str, Any]:
    """The fields of `PredictorOrigin` that tell one model from another."""
    widths = sorted({layer.hidden for layer in layers})
    if len(widths) > 1:
        raise InputError(f"routers: found inputs of {widths} numbers, expected one width in all layers")
    return {"layers": len(layers), "experts": layers[0].count, "hidden": widths[0], "routers": _digest(layers)}


def _digest(layers: Sequence[MoeLayer]) -> str:
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(layer.router_weight.detach().cpu().bfloat16().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _origin(strings: dict[str, str]) -> PredictorOrigin:
    names = {field.name: field.type for field in fields(PredictorOrigin)}
    wanted = {"format", "format_version", *names}
    if strings.keys() != wanted or strings["format_version"] != _VERSION:
        raise InputError(f"header has {sorted(strings)}, expected {sorted(wanted)}, format_version {_VERSION}")
    numbers = {name: strings[name] for name, kind in names.items() if kind == "int"}
    for name, text in numbers.items():
        if not (text.isascii() and text.isdecimal()) or int(text) < 1:
            raise InputError(f"{name}: found {text!r}, expected a whole number from 1")
    return PredictorOrigin(**{name: int(strings[name]) if name in numbers else strings[name] for name in names})  # type: ignore


def _check_model(origin: PredictorOrigin, layers: Sequence[MoeLayer]) -> None:
    """One line naming what differs: a size, or the routers themselves."""
    for name, value in shape_of(layers).items():
        if getattr(origin, name) != value:
            raise InputError(
                f"fitted for {origin.model} with {name} {getattr(origin, name)}, found a model with {name} {value}"
            )


def _check_arrays(origin: PredictorOrigin, arrays: tensor_file.Arrays) -> None:
    ahead, layers, experts, hidden = origin.ahead, origin.layers, origin.experts, origin.hidden
    expected = {
        "residual": ("float32", (layers - 1, hidden)),
        "ridge.slope": ("float16", (ahead, layers, experts, hidden + experts)),
        "ridge.shift": ("float32", (ahead, layers, experts)),
        "ridge.penalty": ("float32", (ahead, layers)),
    }
    found = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    allowed = [{"residual": expected["residual"]}, expected]
    if ahead >= layers or found not in allowed:
        raise InputError(f"found arrays {found} for {ahead} layers ahead, expected {expected} or the first alone")
