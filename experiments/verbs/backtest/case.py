"""What a published row says once it is understood: a model on a machine, where its experts are, and speeds."""

from __future__ import annotations

from dataclasses import dataclass

ENGINES = ("llama_cpp", "ik_llama_cpp", "ktransformers", "exllamav3", "imp", "freetoken")
"""Those of which constants are known: files of conf/engine."""
RULES = ("random", "uniform", "front-loading", "frequency", "dynamic")
"""How KTransformers chooses the experts of a share."""

# ---- where the experts are -------------------------------------------------------------------------


@dataclass(frozen=True)
class CpuLayers:
    """The experts of `n` layers stay with the CPU, and the rest of the model is on the GPU.

    n       None: those of all layers but `on_gpu`
    of      MoE layers of the model, where the row says it
    """

    n: int | None = None
    of: int | None = None
    on_gpu: int = 0


@dataclass(frozen=True)
class GpuLayers:
    """`n` whole layers are on the GPU with their attention, the others wholly with the CPU.

    n   None: as many as its memory takes
    of  layers of the model, where the row says it
    """

    n: int | None = None
    of: int | None = None


@dataclass(frozen=True)
class FitMemory:
    """The experts of as many layers on the GPU as its memory takes, the others with the CPU.

    gb        GPU memory for all of the model, 1e9 bytes; None: what the card has
    spare_gb  of it left free; None: not said
    """

    gb: float | None = None
    spare_gb: float | None = None


@dataclass(frozen=True)
class Share:
    """A share of all experts is on the GPU for good, the others with the CPU.

    share    0 to 1; None: as its memory takes, or as `a_layer` says
    rule     of `RULES`
    a_layer  experts of every layer, where the row says that
    """

    share: float | None
    rule: str
    a_layer: int | None = None


@dataclass(frozen=True)
class Hot:
    """The `n` experts of every layer that a profile found most popular are on the GPU, the others with the CPU."""

    n: int
    of: int | None = None


@dataclass(frozen=True)
class SlotCache:
    """Slots of the GPU's memory that hold what was used last.

    slots         a layer; None where only a size is said, or nothing: as its memory takes
    of            what a layer has in all, in the same unit
    of_matrices   a slot holds one matrix (three an expert) and not a whole expert
    gb            of all slots, 1e9 bytes
    share         of all experts
    hit           measured share of lookups that found their expert
    curve         the same at other numbers of slots: (slots, hit)
    misses        "copied", "cpu", or "both" of them; None: not said
    copied, on_cpu  experts a layer and token that are copied, and that the CPU computes, with "both"
    cpu_layers    layers that keep experts off the GPU; None: all
    """

    slots: float | None = None
    of: int | None = None
    of_matrices: bool = False
    gb: float | None = None
    share: float | None = None
    hit: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    misses: str | None = None
    copied: float | None = None
    on_cpu: float | None = None
    cpu_layers: int | None = None


@dataclass(frozen=True)
class AllGpu:
    """All of the model is in GPU memory."""


Placement = CpuLayers | GpuLayers | FitMemory | Share | Hot | SlotCache | AllGpu


# ---- speeds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuredPrefill:
    """Speed of reading a prompt.

    prompt  tokens, all of them timed
    ubatch  tokens of one step; None: the engine's own default
    depth   tokens in the KV cache before them
    """

    tokens_per_s: float
    prompt: int
    ubatch: int | None = None
    depth: int = 0


@dataclass(frozen=True)
class MeasuredDecode:
    """Speed of writing, all sequences together.

    depth  tokens of each sequence in the KV cache
    """

    tokens_per_s: float
    depth: int = 0


@dataclass(frozen=True)
class CopyRule:
    """From how many tokens of a step on an engine copies experts to the GPU in place of computing them by the CPU.

    tokens  None: not said
    copies  "all" experts of a layer, "active" ones, or "never"; None: not said
    """

    tokens: int | None = None
    copies: str | None = None


# ---- a row -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuredCase:
    """A row that is understood.

    engine     of `ENGINES`
    model, quant, gpu, cpu, ram, pcie  as written; gpu and cpu are None where the row does not name one
    cpu_likely one that the row only says it may be
    model_gb   size of the model's files, 1e9 bytes, where the row says it
    ram_gbs    host bandwidth, 1e9 bytes/s, measured or stated
    batch      sequences at once; None: not said, so that only ratios within the series count
    context    tokens that the KV cache has room for; None: not said
    kv         format of the KV cache, as written
    absolute   whether the row says enough of the machine for its absolute speed to count
    assumed    what the row does not say and was taken, a phrase each
    left_out   speeds of the row that are not compared, and why
    """

    id: str
    series: str
    source: str
    engine: str
    model: str
    quant: str
    bits_per_weight: float | None
    model_gb: float | None
    gpu: str | None
    gpu_mem_gb: float | None
    cpu: str | None
    cpu_likely: str | None
    cores: int | None
    ram: str
    ram_gbs: float | None
    pcie: str
    threads: int | None
    placement: Placement
    prefill: MeasuredPrefill | None
    decode: MeasuredDecode | None
    batch: int | None
    context: int | None
    kv: str | None
    copy_rule: CopyRule
    absolute: bool
    knob: str
    knob_value: str
    notes: str
    assumed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def machine(self) -> str:
        """GPU and host as written, for tables."""
        host = self.cpu or (f"{self.ram_gbs:g} GB/s" if self.ram_gbs else "CPU not said")
        return f"{self.gpu or 'GPU not said'}, {host}"


@dataclass(frozen=True)
class Refusal:
    """A row that is not priced.

    category  of a few, which tables count by; detail: what it was in this row
    """

    id: str
    category: str
    detail: str

    @property
    def reason(self) -> str:
        """Both, in one line."""
        return f"{self.category}: {self.detail}" if self.detail else self.category
