"""`dali import`: a recording in another format becomes a trace file; statistics of any trace."""

from __future__ import annotations

import numpy as np
from omegaconf import DictConfig

from dali.experiments.output.text import number, share, table
from dali.experiments.scene import expert_popularity
from dali.experiments.settings import read
from dali.experiments.settings.routing import about_routing
from dali.policies.types import InputError
from dali.traces.files import check_writable
from dali.traces.importers import IMPORTERS, import_trace
from dali.traces.stats import Statistics, busiest, statistics, top_share
from dali.traces.trace import Trace
from dali.traces.workload import Workload, load_any


def run(config: DictConfig, overrides: list[str]) -> None:
    """Read, print the statistics, write the trace file if asked."""
    name, paths = read.text(config, "format"), read.texts(config, "input")
    output = None if config.output is None else check_writable(read.text(config, "output"))
    if name == "trace":
        if len(paths) > 1 or output is not None:
            raise InputError("format trace: expected one input file and no output, it is a trace already")
        trace = load_any(paths[0])
    elif name in IMPORTERS:
        options = {str(key): value for key, value in config.options.items() if value is not None}
        trace = import_trace(name, paths, **options)
    else:
        raise InputError(f"format: found {name!r}, expected one of {', '.join(IMPORTERS)}, trace")
    print(describe(trace, bool(config.prompt)))
    if output is not None:
        trace.save(output)
        print(f"Written: {output} ({output.stat().st_size / 1e6:.2f} MB)")


def describe(trace: Trace | Workload, prompt: bool) -> str:
    """What is in a trace, and its statistics, for people."""
    metadata = trace.metadata
    head = f"{metadata.model}: {metadata.layers} MoE layers x {metadata.experts} experts, top-{metadata.top_k}"
    head = "\n".join([head, *(f"Note: {note}" for note in about_routing(metadata))])
    if isinstance(trace, Workload):
        return f"{head}\n{trace.description}\n\n{table(['statistic', 'value'], _of_counts(trace))}"
    holds = [f"{trace.tokens} tokens in {trace.sequences} sequences"]
    holds.append("router weights" if trace.weights is not None else "no router weights")
    holds.append(f"predictors {', '.join(f'{s} (to +{h})' for s, h in trace.sources.items()) or 'none'}")
    prompt = prompt or trace.tokens == int(trace.prompt_length.sum())  # there may be nothing but prompts
    part = "prompts and generated tokens" if prompt else "generated tokens"
    found = statistics(trace, prompt)
    return f"{head}\n{', '.join(holds)}\n\n{table([f'statistic ({part})', 'value'], _rows(found))}"


def _rows(found: Statistics) -> list[list[str]]:
    rows = [
        ["tokens", str(found.tokens)],
        ["overlap with the previous token", share(found.overlap)],
        ["reuse within 8 tokens", share(found.reuse)],
    ]
    for label, rates in (("event-atomic", found.lru), ("access by access", found.lru_single)):
        rows += [[f"LRU hit rate at {size:.1%}, {label}", share(rate)] for size, rate in rates.items()]
    rows += [
        ["busiest expert over the mean, by layer", f"{number(found.busiest.min())} to {number(found.busiest.max())}"],
        ["share of the busiest 22 % of experts", share(found.top_share)],
    ]
    return rows + [[f"recall of {name}", share(float(np.nanmean(by_layer)))] for name, by_layer in found.recall.items()]


def _of_counts(workload: Workload) -> list[list[str]]:
    shares, _ = expert_popularity(workload, workload)
    over = busiest(shares)
    return [
        ["steps", str(workload.n_steps)],
        ["largest step, tokens", str(workload.max_tokens)],
        ["busiest expert over the mean, by layer", f"{number(over.min())} to {number(over.max())}"],
        ["share of the busiest 22 % of experts", share(top_share(shares))],
    ]
