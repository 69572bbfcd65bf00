"""`dali.policy`: a policy by its name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dali.experiments.extras import runtime_modules
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import Sized, policy_of
from dali.policies.costs.roofline import ModelShape
from dali.policies.planner import Policy
from dali.policies.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def policy(entry: str, *overrides: str, model: str | ModelShape | PreTrainedModel | None = None) -> Policy:
    """The objects of a policy, with settings of their own.

    entry      a file of conf/policy, or `module:attribute` of your own, with overrides after spaces if wanted
    overrides  more of them, such as "cache.w_size=8" or "cache=lru"
    model      what settings depend on that change with a model's sizes: a name of conf/model, a `ModelShape`, or a
               model of transformers; None = as in `dali compare`

    One with overrides is named after them, as tables name it.  Raises InputError, in one line, for a name or a setting
    that does not exist and a value that does not fit.
    """
    for each in (entry, *overrides):
        if not isinstance(each, str):
            raise InputError(f"policy: found {type(each).__name__}, expected the name of one and overrides as text")
    chosen = [f"model={model}"] if isinstance(model, str) else []
    whole = " ".join([entry, *overrides])
    made = policy_of(whole, configuration("compare", chosen), _sizes(model))
    return made if len(whole.split()) == 1 else replace(made, name=whole)


def _sizes(model: str | ModelShape | PreTrainedModel | None) -> Sized | None:
    if model is None or isinstance(model, str):
        return None
    if isinstance(model, ModelShape):
        return model
    *_, sizes = runtime_modules("torch", "transformers", "dali.experiments.models.sizes")
    found: Sized = sizes.sizes_of(model)
    return found
