"""What a model is, as far as time and memory depend on it."""

from __future__ import annotations

from dataclasses import dataclass

from dali.policies.types import InputError


def require_positive(owner: str, **values: float) -> None:
    """InputError for the first value that is no finite number above 0; `owner` and its name say whose it is."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError(f"{owner}.{name}: found {value!r}, expected a positive number")


@dataclass(frozen=True)
class ModelShape:
    """A mixture-of-experts transformer, as far as time and memory depend on it (`conf/model`).

    layers            MoE layers L
    experts, top_k    routed experts a layer, and how many a token uses
    hidden            width of the residual stream
    expert_width      inner width of one routed expert
    expert_bits       bits a routed-expert weight takes, scales included
    dense_bits        bits of every other weight
    gated             True: gate, up and down projections; False: up and down.  Of experts and dense layers alike
    shared_width      inner width of all shared experts of a layer together (0 = none)
    attention_params  weights of one layer's attention, the mean over layers where they differ
    attention_width   heads x (query-key + value dimension) / 2; arithmetic per token and position = 4 x this
    kv_bytes          bytes one token adds to the KV cache of one layer that has one, at 16 bits a value
    dense_layers      layers without experts, dense_width their inner width
    vocabulary        rows of the output head
    predictor_recall  published recall of the true top-k, one layer ahead, by predictor source
    full_attention    share of layers whose attention reads the whole context
    window            positions that the other layers attend to; 0 = linear attention, a state of constant size
    state_bytes       bytes of that state in one layer and sequence; every step reads and writes it
    chosen            positions that sparse attention chooses of the whole context; 0 = it reads all of them
    kv_bits           bits of a value in the KV cache
    head_bits         bits of a weight of output head and embedding; None = dense_bits
    expert_format     storage of experts, by the names of `policies.costs.formats`: kernels differ in speed by it
    dense_format      the same of every other weight
    tied              True: output head and embedding are one matrix
    """

    name: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    expert_width: int
    expert_bits: float
    dense_bits: float
    gated: bool
    shared_width: int
    attention_params: int
    attention_width: int
    kv_bytes: int
    dense_layers: int
    dense_width: int
    vocabulary: int
    predictor_recall: dict[str, float]
    full_attention: float = 1.0
    window: int = 0
    state_bytes: int = 0
    chosen: int = 0
    kv_bits: float = 16
    head_bits: float | None = None
    expert_format: str = "bf16"
    dense_format: str = "bf16"
    tied: bool = False

    def __post_init__(self) -> None:
        require_positive(
            "model",
            layers=self.layers,
            experts=self.experts,
            top_k=self.top_k,
            hidden=self.hidden,
            expert_width=self.expert_width,
            expert_bits=self.expert_bits,
            dense_bits=self.dense_bits,
            attention_params=self.attention_params,
            vocabulary=self.vocabulary,
            kv_bits=self.kv_bits,
            head_bits=self.dense_bits if self.head_bits is None else self.head_bits,
        )
        if self.top_k > self.experts:
            raise InputError(f"model.top_k: found {self.top_k}, expected at most the {self.experts} experts")
        if not 0 <= self.full_attention <= 1:
            raise InputError(f"model.full_attention: found {self.full_attention}, expected a share between 0 and 1")
        for name in ("window", "state_bytes", "chosen"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name}: found {getattr(self, name)}, expected at least 0")
        for source, recall in self.predictor_recall.items():
            if not 0 <= recall <= 1:
                raise InputError(f"model.predictor_recall.{source}: found {recall}, expected a share between 0 and 1")

    # ---- weights ---------------------------------------------------------------------------------------

    @property
    def expert_params(self) -> int:
        """Weights of one routed expert."""
        return self._projections * self.hidden * self.expert_width

    @property
    def shared_params(self) -> int:
        """Weights of the shared experts of one MoE layer."""
        return self._projections * self.hidden * self.shared_width

    @property
    def router_params(self) -> int:
        """Weights of the router of one MoE layer."""
        return self.hidden * self.experts

    @property
    def layer_params(self) -> int:
        """Weights of one MoE layer without its routed experts."""
        return self.attention_params + self.shared_params + self.router_params

    @property
    def dense_layer_params(self) -> int:
        """Weights of one layer without experts."""
        return self.attention_params + self._projections * self.hidden * self.dense_width

    @property
    def head_params(self) -> int:
        """Weights of the output head."""
        return self.vocabulary * self.hidden

    @property
    def outside_params(self) -> int:
        """Weights that a step reads outside MoE layers: layers without experts, and the output head."""
        return self.dense_layers * self.dense_layer_params + self.head_params

    @property
    def total_params(self) -> int:
        """Weights of the whole model, without norms and biases."""
        embedding = 0 if self.tied else self.head_params
        return self.layers * (self.layer_params + self.experts * self.expert_params) + self.outside_params + embedding

    @property
    def active_params(self) -> int:
        """Weights that one token multiplies; of the embedding it reads one row, which is left out."""
        return self.layers * (self.layer_params + self.top_k * self.expert_params) + self.outside_params

    @property
    def _projections(self) -> int:
        return 3 if self.gated else 2

    # ---- bytes -----------------------------------------------------------------------------------------

    @property
    def layer_bytes(self) -> float:
        """Bytes of one MoE layer without its routed experts."""
        return self.layer_params * self.dense_bits / 8

    @property
    def outside_bytes(self) -> float:
        """Bytes of `outside_params`."""
        dense = self.dense_layers * self.dense_layer_params * self.dense_bits / 8
        return dense + self.head_bytes

    @property
    def head_bytes(self) -> float:
        """Bytes of the output head."""
        return self.head_params * (self.dense_bits if self.head_bits is None else self.head_bits) / 8

    @property
    def dense_bytes(self) -> float:
        """Bytes of all that a step reads besides routed experts."""
        return self.layers * self.layer_bytes + self.outside_bytes

    @property
    def total_bytes(self) -> float:
        """Bytes of all weights: what a file of the model takes."""
        embedding = 0.0 if self.tied else self.head_bytes
        experts = self.layers * self.experts * self.expert_params * self.expert_bits / 8
        return experts + self.dense_bytes + embedding

    def unit_bytes(self, slices: int = 1) -> int:
        """Bytes of one unit."""
        if slices < 1 or self.expert_width % slices:
            raise InputError(f"slices: found {slices}, expected a divisor of expert_width {self.expert_width}")
        return int(self.expert_params * self.expert_bits / 8) // slices

    # ---- attention -------------------------------------------------------------------------------------

    def attended(self, context: float, sparse: bool = True) -> float:
        """Positions that a token attends to in a layer, the mean over layers, with `context` of them before it.

        sparse  whether the engine reads only the positions that the model chooses, where it does
        """
        whole = min(context, float(self.chosen)) if self.chosen and sparse else context
        return self.full_attention * whole + (1 - self.full_attention) * min(float(self.window), context)

    def cache_bytes(self, context: float) -> float:
        """Bytes of KV cache and state that one sequence keeps in a layer, the mean over layers."""
        return self._kv_bytes(self.attended(context, sparse=False)) + self._state_bytes

    def sequence_bytes(self, context: float) -> float:
        """Bytes of KV cache and state that one sequence keeps over all layers, those without experts included."""
        return (self.layers + self.dense_layers) * self.cache_bytes(context)

    def attention_bytes(self, context: float, sparse: bool = True) -> float:
        """Bytes that attention moves in a step, a sequence and a layer: what it attends to, and its state twice."""
        return self._kv_bytes(self.attended(context, sparse)) + 2 * self._state_bytes

    def _kv_bytes(self, positions: float) -> float:
        return positions * self.kv_bytes * self.kv_bits / 16

    @property
    def _state_bytes(self) -> float:
        return (1 - self.full_attention) * self.state_bytes
