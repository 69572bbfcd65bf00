"""`dali VERB [NAME=VALUE ...]`: each verb is a module of this package with a `run(config, overrides)`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from dali.experiments.settings.compose import configuration, listing
from dali.policies.core.jit import CACHE_FOLDER
from dali.policies.types import InputError

VERBS = {
    "compare": (
        "dali.experiments.verbs.compare.verb",
        "compare policies on one trace, model and machine, in simulated time",
    ),
    "replay": ("dali.experiments.verbs.replay", "hits of one cache policy on a trace, without a clock"),
    "import": (
        "dali.experiments.verbs.importing",
        "turn a recording in another format into a trace file; statistics of any trace",
    ),
    "predict": (
        "dali.experiments.verbs.predict.verb",
        "recall of the predictors recorded in a trace, and of simple ones",
    ),
    "gap": (
        "dali.experiments.verbs.gap.verb",
        "how far every policy is from the optimum, and what each idea could still buy",
    ),
    "record": (
        "dali.experiments.verbs.record.verb",
        "run an MoE model of transformers and write its routing as a trace file",
    ),
    "run": (
        "dali.experiments.verbs.run.verb",
        "run a model with its experts in host memory, under the same policies, and time it",
    ),
    "report": ("dali.experiments.verbs.report", "one self-contained HTML page from a results folder"),
    "sweep": (
        "dali.experiments.verbs.sweep.verb",
        "a named experiment over a grid of settings, here or on a cluster; resumes",
    ),
    "calibrate": (
        "dali.experiments.verbs.calibrate.verb",
        "measure this machine for one model; writes a file of conf/platform",
    ),
    "validate": (
        "dali.experiments.verbs.validate.verb",
        "run policies, simulate them with a calibrated profile, report the error",
    ),
    "doctor": (
        "dali.experiments.verbs.doctor.verb",
        "one page on this machine: what it has, what it reaches, what is wrong",
    ),
    "bench": ("dali.experiments.verbs.bench.verb", "measure the speed of simulator, planner and replay"),
}
HELP = {"-h", "--help"}


def usage() -> str:
    """What `dali --help` prints."""
    verbs = "\n".join(f"  {verb:12}{what}" for verb, (_, what) in VERBS.items())
    return f"dali VERB [NAME=VALUE ...]\n\n{verbs}\n\ndali VERB --help shows what can be set, and its defaults."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb: 0 if it worked, 1 if a part of it failed, 2 with one line on standard error for bad input, 130 if
    interrupted.
    """
    verb, *overrides = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in HELP:
        print(usage())
        return 0
    return with_status(f"dali {verb}", lambda: _run(verb, overrides))


def _run(verb: str, overrides: list[str]) -> int | None:
    if verb not in VERBS:
        raise InputError(f"found verb {verb!r}, expected one of {', '.join(VERBS)}")
    if HELP & set(overrides):
        print(listing(verb, [override for override in overrides if override not in HELP]))
        return 0
    if not CACHE_FOLDER.exists():
        print("First run of this version: compiling kernels takes half a minute or so.", file=sys.stderr)
    module = importlib.import_module(VERBS[verb][0])
    status: int | None = module.run(configuration(verb, overrides), overrides)
    return status


def with_status(command: str, action: Callable[[], int | None]) -> int:
    """What an action returns (None = 0), or 2 with one line on standard error for bad input, 130 if interrupted."""
    try:
        return action() or 0
    except InputError as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"{command}: {what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{command}: {str(error) or 'interrupted, nothing was written'}", file=sys.stderr)
        return 130
