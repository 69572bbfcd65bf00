"""`Profile`: the knobs of synthetic routing, and the profiles of three models."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from dali.policies.types import InputError


@dataclass(frozen=True)
class RoutingProfile:
    """How a model routes, as `traces.synthetic.generate` imitates it.

    A token sends itself to the `top_k` experts of highest logit.  A logit is the expert's popularity plus
    content of variance 1 within a layer: a topic that a sequence keeps, a drift that changes over tens of
    tokens and a fast part that changes over one or two.

    name               model the profile imitates
    layers, experts    MoE layers L; routed experts E of each
    top_k              experts of a token, K
    skew               standard deviation of popularity in the first and the last layer, linear in between
                       (early layers route almost uniformly, deeper ones concentrate)
    topic, drift       shares of the content's variance; what they leave of 1 is the fast part
    drift_memory       tokens after which the drift's correlation has fallen to 1/e
    persistence        correlation of the fast part between consecutive tokens, 0 to below 1
    sharpness          router weights are the softmax of sharpness * logit over a token's experts
    residual_recall    recall of the predictor `residual` 1, 2, ... layers ahead; () = no predictors
    gate_recall        the same of the predictor `gate`, as many, each at most the residual's
    model_seed         draws what belongs to the model and not to the text: popularity and the gate's bias
    """

    name: str
    layers: int
    experts: int
    top_k: int
    skew: tuple[float, float]
    topic: float
    drift: float
    drift_memory: float
    persistence: float
    sharpness: float
    residual_recall: tuple[float, ...] = ()
    gate_recall: tuple[float, ...] = ()
    model_seed: int = 0

    def __post_init__(self) -> None:
        if self.layers < 1 or not 1 <= self.top_k <= self.experts or not 2 <= self.experts < 2**16:
            raise InputError(
                f"profile {self.name}: found {self.layers} layers x {self.experts} experts, top-{self.top_k}, expected "
                "at least 1 layer, 2 to 65535 experts and top-k among them"
            )
        knobs = (*self.skew, self.sharpness, self.topic, self.drift, self.drift_memory, self.persistence)
        if not all(isfinite(knob) and knob >= 0 for knob in knobs):
            raise InputError(f"profile {self.name}: found knobs {knobs}, expected finite numbers of at least 0")
        if self.topic + self.drift > 1:
            raise InputError(
                f"profile {self.name}: found topic {self.topic} and drift {self.drift}, expected at most 1 together"
            )
        if self.drift_memory == 0 or self.persistence >= 1:
            raise InputError(
                f"profile {self.name}: found drift_memory {self.drift_memory} and persistence {self.persistence}, "
                "expected above 0 tokens and below 1"
            )
        self._check_recalls()

    def _check_recalls(self) -> None:
        residual, gate = self.residual_recall, self.gate_recall
        if len(residual) != len(gate) or len(residual) > self.layers - 1:
            raise InputError(
                f"profile {self.name}: found {len(residual)} residual and {len(gate)} gate recalls, expected as many "
                f"of each and fewer than the {self.layers} layers"
            )
        if any(not 0 < worse <= better <= 1 for better, worse in zip(residual, gate, strict=True)):
            raise InputError(
                f"profile {self.name}: found residual recall {residual} and gate recall {gate}, expected shares "
                "above 0 and the gate's not above the residual's"
            )


# A predictor's recall falls by this factor with each further layer.  Gates applied ahead of their layer: OLMoE's
# recall falls from 83.6 to 66 % between one and four layers ahead.
KEPT_PER_LAYER = (66 / 83.6) ** (1 / 3)


def _falling(recall: float, layers_ahead: int = 3) -> tuple[float, ...]:
    """Recall 1, 2, ... layers ahead of a predictor that has `recall` one layer ahead."""
    return tuple(round(recall * KEPT_PER_LAYER**h, 3) for h in range(layers_ahead))


# Fitted with `traces.fit_profiles.fit` and rounded.  Targets, and what is reached: tests/traces/test_synthetic.py.
# Sharpness follows the recorded weights of Qwen3-30B-A3B (the best of six is 2.6 times the last); for the others it is
# an estimate, like all of the recalls two and three layers ahead.
MIXTRAL_8X7B = RoutingProfile(
    name="mixtral_8x7b",
    layers=32,
    experts=8,
    top_k=2,
    # Skew: the busiest experts of Fiddler's counts over seven MMLU subjects (22 % of all hold 25.5 %).
    skew=(0.04, 0.14),
    topic=0.02,
    drift=0.02,
    drift_memory=16.0,
    persistence=0.285,
    sharpness=1.0,
    # Estimate.  DALI gives cosines of predicted and true gate input, residual .89 and gate .79; Qwen3's are .93
    # and .79 for recalls of 93.3 and 77.6 %: the same gate recall, and the residual's in proportion.
    residual_recall=_falling(0.888),
    gate_recall=_falling(0.776),
)
DEEPSEEK_V2_LITE = RoutingProfile(
    name="deepseek_v2_lite",
    layers=26,
    experts=64,
    top_k=6,
    # Skew, topic and drift also follow recorded traces: experts shared by tokens of different texts (.10), and by
    # tokens 4 and 32 apart in one text (.16 and .14).
    skew=(0.05, 0.3),
    topic=0.105,
    drift=0.053,
    drift_memory=12.0,
    persistence=0.27,
    sharpness=1.0,
    residual_recall=_falling(0.795),  # DALI, average of four tasks, and so below
    gate_recall=_falling(0.726),
)
QWEN3_30B_A3B = RoutingProfile(
    name="qwen3_30b_a3b",
    layers=48,
    experts=128,
    top_k=8,
    # Fitted on the best six experts of a token, which is what was recorded.  All eight fill small caches sooner:
    # overlap .40, reuse .76, event-atomic hit rates .57, .77, .92.  One recorded text cannot tell skew from
    # topic: how they share what they explain together is an estimate.
    skew=(0.05, 0.6),
    topic=0.38,
    drift=0.12,
    drift_memory=28.0,
    persistence=0.31,
    sharpness=1.0,
    residual_recall=_falling(0.933),
    gate_recall=_falling(0.776),
)
PROFILES = {profile.name: profile for profile in (MIXTRAL_8X7B, DEEPSEEK_V2_LITE, QWEN3_30B_A3B)}
