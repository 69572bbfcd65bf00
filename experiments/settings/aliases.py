"""Classes by the names under which earlier versions wrote them into profiles, results and configurations."""

from __future__ import annotations

from typing import Any

# By module of versions 0.1 and 0.2, each class or function that a configuration may name, and its module of today.
_MODULES = {
    "policies.assignment": {
        "AllCPU": "dali.policies.assign.fixed",
        "AllGPU": "dali.policies.assign.fixed",
        "LayerSplit": "dali.policies.assign.fixed",
        "Threshold": "dali.policies.assign.fixed",
        "Greedy": "dali.policies.assign.greedy",
        "HybriMoE": "dali.policies.assign.hybrimoe",
    },
    "policies.exact": {"Exact": "dali.policies.assign.exact"},
    "policies.ilp": {"ILP": "dali.policies.assign.ilp"},
    "policies.frontier": {"Frontier": "dali.policies.assign.frontier"},
    "policies.cache_policies": {
        "Static": "dali.policies.cache.fixed",
        "WholeLayers": "dali.policies.cache.fixed",
        "LRU": "dali.policies.cache.classic",
        "LFU": "dali.policies.cache.classic",
        "Belady": "dali.policies.cache.classic",
        "MRS": "dali.policies.cache.mrs",
        "WorkloadAware": "dali.policies.cache.workload",
    },
    "policies.frontier_cache": {"SavingCache": "dali.policies.cache.frontier"},
    "policies.prefetch": {
        "NoPrefetch": "dali.policies.prefetch.simple",
        "RandomPrefetch": "dali.policies.prefetch.simple",
        "FrequencyPrefetch": "dali.policies.prefetch.simple",
        "NextLayer": "dali.policies.prefetch.simple",
        "PredictedPrefetch": "dali.policies.prefetch.predicted",
        "OraclePrefetch": "dali.policies.prefetch.predicted",
        "GainPrefetch": "dali.policies.prefetch.gain",
    },
    "policies.frontier_prefetch": {"SavingPrefetch": "dali.policies.prefetch.frontier"},
    "policies.planner": {"Policy": "dali.policies.planner"},
    "policies.roofline": {
        "ModelShape": "dali.policies.costs.model_shape",
        "Platform": "dali.policies.costs.roofline",
        "Processor": "dali.policies.costs.roofline",
    },
    "dali.policies.costs.roofline": {"ModelShape": "dali.policies.costs.model_shape"},
    "policies.measured": {"Profile": "dali.policies.costs.measured"},
    "traces.synthetic": {"generate_profile": "dali.traces.synthetic", "generate_resized": "dali.traces.synthetic"},
    "traces.workload": {"load_any": "dali.traces.workload"},
    "experiments.calibrate_profile": {"load": "dali.experiments.profiles"},
    "experiments.sweep_points": {
        "Experiment": "dali.experiments.verbs.sweep.points",
        "Collection": "dali.experiments.verbs.sweep.points",
    },
}


def current(name: str) -> str:
    """The dotted name of today for one of an earlier version; any other as it is."""
    module, _, own = name.rpartition(".")
    moved = _MODULES.get(module, {}).get(own)
    return name if moved is None else f"{moved}.{own}"


def with_current_targets(node: Any) -> Any:
    """A plain configuration with every earlier `_target_` by its name of today; `node` is left as it is."""
    if isinstance(node, dict):
        return {
            key: current(value) if key == "_target_" and isinstance(value, str) else with_current_targets(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [with_current_targets(each) for each in node]
    return node
