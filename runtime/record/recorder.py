"""`Recorder`: the routing of a live transformers model, as a trace file."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dali.policies.types import InputError
from dali.runtime.model.experts_hook import reading, watching
from dali.runtime.model.moe_layers import MoeLayer, moe_layers
from dali.runtime.predict.predictors import Predictor
from dali.runtime.record.predictions import Predictions
from dali.runtime.record.row_files import RowFiles
from dali.traces.expert_ids import id_type
from dali.traces.files import check_writable
from dali.traces.metadata import Metadata
from dali.traces.trace import Trace

_HALF_MAX = 65504.0


@dataclass(frozen=True)
class _RecordedBatch:
    """Sequences that run together, `length` tokens each; `done` of them are on disk from row `start` on.

    cosine  by predictor name, float64 [sequences, L], sums over the tokens done
    """

    start: int
    sequences: int
    prompt: int
    length: int
    done: int = 0
    cosine: dict[str, NDArray[np.float64]] = field(default_factory=dict)


class Recorder:
    """Records every forward pass of a model between `with` and its end, which writes the trace.

    model         a model of transformers >= 5.10 whose experts use its experts interface
    path          the .safetensors file to write
    origin        fields of `Metadata` that the model does not know: model, revision, text, seed, notes
    weights       keep the router weights too
    router_input  keep each router's input and matrix too: 2 bytes x T x L x hidden width
    predictors    keep what each of these chooses for every layer from the layers before it, and the cosine of
                  predicted and true router input
    on_step       called after each step with the tokens it had

    Announce each batch by `batch`, then run the model on it in any way (`model(...)`, `model.generate(...)`):
    each forward pass is a step, and each step goes to disk as it ends.  Sequences of a batch are equally long
    and unpadded.  A block that is left by an exception still writes the whole steps it finished, except where
    the exception says that they are wrong (InputError) or that the disk failed (OSError): then no file is left.
    The model runs what it ran before, so its outputs are bit-identical.

    Raises InputError for a model that cannot be recorded, OSError naming the path where the disk does not take it.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | Path,
        *,
        origin: dict[str, Any] | None = None,
        weights: bool = True,
        router_input: bool = False,
        predictors: Sequence[Predictor] = (),
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self._model = model
        self._path = check_writable(path)
        self._origin = {"model": type(model).__name__} | (origin or {})
        self._layers: list[MoeLayer] = moe_layers(model)
        self._number = {id(layer.experts): number for number, layer in enumerate(self._layers)}
        self._weights = weights
        self._router_weight = _router_weight(self._layers) if router_input else None
        self._guesses = Predictions(predictors, len(self._layers)) if predictors else None
        self._on_step = on_step
        self._lengths: list[int] = []
        self._prompts: list[int] = []
        self._cosine: dict[str, list[NDArray[np.float64]]] = {}
        self._batch: _RecordedBatch | None = None
        self._step: dict[tuple[str, int], Tensor] | None = None
        self._top_k = 0
        self._files: RowFiles | None = None
        self._stack = ExitStack()
        self.written: Path | None = None
        """The trace file, once the block has been left; None if no step was finished."""

    @property
    def tokens(self) -> int:
        """Rows on disk that belong to whole steps."""
        batch = self._batch
        return sum(self._lengths) + (batch.sequences * batch.done if batch else 0)

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            try:
                folder = tempfile.mkdtemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            except OSError as error:
                raise self._named(error) from None
            self._folder = Path(folder)
            stack.callback(shutil.rmtree, folder)
            stack.enter_context(watching(self._seen))
            stack.callback(self._model.register_forward_pre_hook(self._begin).remove)
            stack.callback(self._model.register_forward_hook(self._end).remove)
            if self._router_weight is not None or self._guesses is not None:
                stack.enter_context(reading(self._layers, self._read))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._stack:
            try:
                if not isinstance(error, InputError | OSError):
                    self._save()
            except OSError as failure:
                raise self._named(failure) from None
            finally:
                if self._files is not None:
                    self._files.close()

    def batch(self, sequences: int, prompt: int, generate: int) -> None:
        """Announce new sequences, equally long: `prompt` tokens, then `generate` that follow one by one."""
        if min(sequences, prompt) < 1 or generate < 0:
            raise InputError(f"batch: found {sequences} sequences of {prompt} + {generate} tokens, expected 1 or more")
        self._close_batch()
        self._batch = _RecordedBatch(sum(self._lengths), sequences, prompt, prompt + generate)

    # ---- during a forward pass -------------------------------------------------------------------

    def _begin(self, *_: Any) -> None:
        self._step = {}
        if self._guesses is not None:
            self._guesses.begin()

    def _seen(self, experts: nn.Module, ids: Tensor, weights: Tensor) -> None:
        number = self._number.get(id(experts))
        if number is None or self._step is None:
            return
        if ("experts", number) in self._step:
            raise InputError(f"{self._layers[number].name}: found a second call in one forward pass, expected one")
        # Copies: what the model does to its own tensors later must not reach the trace.
        flat = ids.detach().reshape(-1, ids.shape[-1])
        self._step["experts", number] = flat.to(torch.int32, copy=True)
        if self._weights:
            self._step["weights", number] = weights.detach().reshape(flat.shape).to(torch.float16, copy=True)
        if self._guesses is not None:
            self._guesses.check(number, flat)

    def _read(self, number: int, x: Tensor) -> None:
        if self._step is None or (self._guesses is not None and self._guesses.busy):
            return
        if self._router_weight is not None:
            self._step["router_input", number] = x.clamp(-_HALF_MAX, _HALF_MAX).to(torch.float16, copy=True)
        if self._guesses is not None:
            self._guesses.read(number, x)

    def _end(self, *_: Any) -> None:
        step, self._step = self._step, None
        if step is None:
            return
        kinds = ["experts", "weights"][: 1 + self._weights] + ["router_input"] * (self._router_weight is not None)
        arrays = {kind: self._gather(kind, step) for kind in kinds}
        arrays["experts"] = self._ids(arrays["experts"])
        cosine: dict[str, NDArray[np.float64]] = {}
        if self._guesses is not None:
            ids, cosine = self._guesses.end(arrays["experts"].shape[-1])
            arrays |= {f"predicted.{name}": self._ids(found, f"predicted.{name}") for name, found in ids.items()}
        if self._weights and not (np.isfinite(arrays["weights"]) & (arrays["weights"] >= 0)).all():
            raise InputError(
                "router weights: found one below zero or not finite, expected none; weights=false leaves them out"
            )
        try:
            self._append(arrays, cosine)
        except OSError as error:
            raise self._named(error) from None
        if self._on_step is not None:
            self._on_step(len(arrays["experts"]))

    def _gather(self, kind: str, step: dict[tuple[str, int], Tensor]) -> NDArray[Any]:
        """[N, L, ...] of one step, in one copy to the host."""
        parts = []
        for number, layer in enumerate(self._layers):
            if (kind, number) not in step:
                raise InputError(f"{layer.name}: found no {kind} in a forward pass, expected every MoE layer to run")
            parts.append(step[kind, number])
            if parts[-1].shape != parts[0].shape:
                raise InputError(
                    f"{kind} of {layer.name}: found shape {list(parts[-1].shape)}, expected {list(parts[0].shape)} as "
                    f"in {self._layers[0].name}"
                )
        return torch.stack([part.to(parts[0].device) for part in parts], dim=1).cpu().numpy()

    def _ids(self, found: NDArray[np.int32], name: str = "experts") -> NDArray[Any]:
        """Ids in the trace's type; those of no expert, as models hand over for dropped tokens, become none."""
        count = self._layers[0].count
        none = int(np.iinfo(id_type(count)).max)
        ids = np.where((found >= 0) & (found < count), found, none).astype(id_type(count))
        ordered = np.sort(ids, axis=-1)
        if np.any((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != none)):
            raise InputError(f"{name}: found an id twice for one token of a layer, expected different ones")
        return ids

    # ---- on disk ---------------------------------------------------------------------------------

    def _append(self, arrays: dict[str, NDArray[Any]], cosine: dict[str, NDArray[np.float64]]) -> None:
        """Write one step; `cosine` [N, L] by predictor name."""
        batch, tokens = self._batch, len(arrays["experts"])
        if batch is None:
            raise InputError("recorder: found a forward pass, expected batch() before it")
        width = tokens // batch.sequences
        if tokens % batch.sequences or batch.done + width > batch.length:
            raise InputError(
                f"step: found {tokens} tokens, expected at most {batch.length - batch.done} for each of "
                f"{batch.sequences} sequences"
            )
        if self._files is None:
            self._files = RowFiles(self._folder, {name: (a.dtype.name, a.shape[1:]) for name, a in arrays.items()})
            self._top_k = arrays["experts"].shape[-1]
        for name, array in arrays.items():
            for sequence in range(batch.sequences):
                rows = array[sequence * width : (sequence + 1) * width]
                self._files.put(name, rows, batch.start + sequence * batch.length + batch.done)
        sums = {name: values.reshape(batch.sequences, width, -1).sum(axis=1) for name, values in cosine.items()}
        sums = {name: added + batch.cosine.get(name, 0) for name, added in sums.items()}
        # Last, and in one: a step that was cut off is not counted.
        self._batch = replace(batch, done=batch.done + width, cosine=sums)

    def _close_batch(self) -> None:
        """Count the batch in; what it has of fewer tokens than announced moves together."""
        batch, self._batch = self._batch, None
        if batch is None or batch.done == 0 or self._files is None:
            return
        if batch.done < batch.length:
            for sequence in range(batch.sequences):
                source, target = (batch.start + sequence * size for size in (batch.length, batch.done))
                self._files.move(source, target, batch.done)
        for name, sums in batch.cosine.items():
            self._cosine.setdefault(name, []).append(sums / batch.done)
        self._lengths += [batch.done] * batch.sequences
        self._prompts += [min(batch.prompt, batch.done)] * batch.sequences

    def _save(self) -> None:
        self._close_batch()
        if self._files is None or not self._lengths:
            return
        arrays = self._files.arrays(sum(self._lengths))
        predicted = {name: arrays.pop(f"predicted.{name}") for name in self._cosine}
        trace = Trace(
            metadata=self._metadata(),
            sequence=np.repeat(np.arange(len(self._lengths), dtype=np.int32), self._lengths),
            position=np.concatenate([np.arange(length, dtype=np.int32) for length in self._lengths]),
            prompt_length=np.array(self._prompts, np.int32),
            router_weight=self._router_weight,
            predicted=predicted,
            cosine={name: np.concatenate(parts).astype(np.float32) for name, parts in self._cosine.items()},
            **arrays,
        )
        trace.save(self._path)
        self.written = self._path

    def _metadata(self) -> Metadata:
        return Metadata(
            layers=len(self._layers),
            experts=self._layers[0].count,
            top_k=self._top_k,
            dtype=str(next(self._model.parameters()).dtype).removeprefix("torch."),
            recorder=f"dali-moe {version('dali-moe')}, transformers {version('transformers')}",
            unit_bytes=tuple(layer.unit_bytes for layer in self._layers),
            **self._origin,
        )

    def _named(self, error: OSError) -> OSError:
        """The error with the path in it: writing to an open file does not say which."""
        return OSError(error.errno or errno.EIO, error.strerror or f"cannot be written ({error})", str(self._path))


def _router_weight(layers: list[MoeLayer]) -> NDArray[Any]:
    """[L, E, H], float16 where the model's is, else float32."""
    stacked = torch.stack([layer.router_weight.detach().cpu() for layer in layers])
    array: NDArray[Any] = (stacked if stacked.dtype == torch.float16 else stacked.float()).numpy()
    return array
