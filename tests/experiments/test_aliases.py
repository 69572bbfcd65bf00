"""What version 0.1 wrote still loads: names of classes in profiles, results and configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from dali.experiments.profiles import load
from dali.experiments.settings.aliases import current, with_current_targets
from dali.experiments.settings.objects import make
from dali.policies.cache.workload import WorkloadAware
from dali.policies.costs.measured import Profile
from dali.policies.costs.roofline import ModelShape, Platform
from dali.policies.planner import Policy

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
# Every `_target_` of its conf, and that of a profile of `dali calibrate`.
OLD = {
    "dali.policies.costs.roofline": ["ModelShape"],
    "experiments.calibrate_profile": ["load"],
    "experiments.sweep_points": ["Collection", "Experiment"],
    "policies.assignment": ["AllCPU", "AllGPU", "Greedy", "HybriMoE", "LayerSplit", "Threshold"],
    "policies.cache_policies": ["Belady", "LFU", "LRU", "MRS", "Static", "WholeLayers", "WorkloadAware"],
    "policies.exact": ["Exact"],
    "policies.frontier": ["Frontier"],
    "policies.frontier_cache": ["SavingCache"],
    "policies.frontier_prefetch": ["SavingPrefetch"],
    "policies.ilp": ["ILP"],
    "policies.measured": ["Profile"],
    "policies.planner": ["Policy"],
    "policies.prefetch": [
        "FrequencyPrefetch",
        "GainPrefetch",
        "NextLayer",
        "NoPrefetch",
        "OraclePrefetch",
        "PredictedPrefetch",
        "RandomPrefetch",
    ],
    "policies.roofline": ["ModelShape", "Platform", "Processor"],
    "traces.synthetic": ["generate_profile", "generate_resized"],
    "traces.workload": ["load_any"],
}
# A part of a config.yaml as `dali compare` of version 0.1 wrote it, and one of its policies.
CONFIG = """
model:
  {_target_: policies.roofline.ModelShape, _convert_: all, name: toy, layers: 2, experts: 4, top_k: 1, hidden: 8,
   expert_width: 8, expert_bits: 16, dense_bits: 16, gated: true, shared_width: 0, attention_params: 64,
   attention_width: 8, kv_bytes: 16, dense_layers: 0, dense_width: 0, vocabulary: 32, predictor_recall: {gate: 0.5}}
platform:
  {_target_: policies.roofline.Platform, name: toy, gpu_memory_gb: 8, cpu_cores: 4, link_gbs: 10, copy_latency_us: 1,
   issue_gap_us: 1, readback_us: 1, planning_us: 1, merge_us: 1,
   gpu: {_target_: policies.roofline.Processor, bandwidth_gbs: 100, tflops: 10, bandwidth_share: 0.5,
         compute_share: 0.5, job_overhead_us: 1},
   cpu: {_target_: policies.roofline.Processor, bandwidth_gbs: 50, tflops: 1, bandwidth_share: 0.5,
         compute_share: 0.5, job_overhead_us: 1}}
policy:
  _target_: policies.planner.Policy
  name: old
  assignment: {_target_: policies.assignment.Greedy, max_copies: null, landing: free}
  prefetch: {_target_: policies.prefetch.NoPrefetch}
  cache: {_target_: policies.cache_policies.WorkloadAware, scope: layer, fill: random, w_size: 4, u_size: 8}
"""


@pytest.mark.parametrize("name", [f"{module}.{own}" for module, names in OLD.items() for own in names])
def test_an_old_name_is_a_class_or_function_of_today(name):
    module, _, own = current(name).rpartition(".")
    assert module.startswith("dali.")
    found = getattr(__import__(module, fromlist=[own]), own)
    # Where it is defined, and not only imported.
    assert f"{found.__module__}.{found.__qualname__}" == current(name)


def test_other_names_stay():
    for name in ("dali.policies.assign.greedy.Greedy", "mypackage.Greedy", "policies.assignment.Mine", "Greedy"):
        assert current(name) == name


def test_what_is_given_stays_as_it_is():
    node = {"a": [{"_target_": "policies.ilp.ILP"}], "_target_": 3}
    assert with_current_targets(node) == {"a": [{"_target_": "dali.policies.assign.ilp.ILP"}], "_target_": 3}
    assert node["a"][0]["_target_"] == "policies.ilp.ILP"


@pytest.mark.parametrize("name", ["throttled_cpu", "throttled_cpu_qwen3"])
def test_committed_profiles_load(name):
    file = RESULTS / name / "platform.yaml"
    assert "_target_: policies.measured.Profile" in file.read_text()
    by_path = load(str(file))
    by_target = make(OmegaConf.load(file), "profile")
    assert isinstance(by_target, Profile)
    assert by_target.to_config() == by_path.to_config()


def test_an_old_configuration_makes_todays_objects():
    config = OmegaConf.create(yaml.safe_load(CONFIG))
    model = make(config.model, "model")
    assert isinstance(model, ModelShape)
    assert model.predictor_recall == {"gate": 0.5}
    platform = make(config.platform, "platform")
    assert isinstance(platform, Platform)
    assert (platform.gpu.bandwidth, platform.cpu.tflops) == (50e9, 1)
    policy = make(config.policy, "policy")
    assert isinstance(policy, Policy)
    assert isinstance(policy.cache, WorkloadAware)
    assert (policy.cache.w_size, policy.cache.u_size) == (4, 8)
