"""All verbs: one that is added is a line here, and a module or a folder with a verb.py beside this file."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

ROOM = "dali.experiments.verbs"


class Verb(NamedTuple):
    """A verb of the command line.

    place  below this package: a module, or a folder with a verb.py, that has `run(config, overrides)`; it returns the
           exit status, None = 0
    help   one line
    """

    place: str
    help: str

    @property
    def module(self) -> str:
        """The module to run."""
        return f"{ROOM}.{self.place}"

    @property
    def shown(self) -> str | None:
        """The module whose `contents(folder)` is what `dali report` shows; None for verbs that leave no results."""
        name = f"{self.module.removesuffix('.verb')}.shown"
        return name if self.place.endswith(".verb") and find_spec(name) is not None else None


VERBS = {
    "compare": Verb("compare.verb", "compare policies on one trace, model and machine, in simulated time"),
    "replay": Verb("replay", "hits of one cache policy on a trace, without a clock"),
    "import": Verb("importing", "turn a recording in another format into a trace file; statistics of any trace"),
    "predict": Verb("predict.verb", "recall of the predictors recorded in a trace, and of simple ones"),
    "gap": Verb("gap.verb", "how far every policy is from the optimum, and what each idea could still buy"),
    "backtest": Verb("backtest.verb", "published speeds of other engines beside what is predicted for them"),
    "record": Verb("record.verb", "run an MoE model of transformers and write its routing as a trace file"),
    "run": Verb("run.verb", "run a model with its experts in host memory, under the same policies, and time it"),
    "report": Verb("report", "one self-contained HTML page from a results folder"),
    "sweep": Verb("sweep.verb", "a named experiment over a grid of settings, here or on a cluster; resumes"),
    "calibrate": Verb("calibrate.verb", "measure this machine for one model; writes a file of conf/platform"),
    "validate": Verb("validate.verb", "run policies, simulate them with a calibrated profile, report the error"),
    "doctor": Verb("doctor.verb", "one page on this machine: what it has, what it reaches, what is wrong"),
    "bench": Verb("bench.verb", "measure the speed of simulator, planner and replay"),
}
