"""Tables of what was measured beside what was simulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from dali.experiments.output.document import Section, Table
from dali.experiments.output.text import number
from dali.experiments.verbs.validate.runs import RanAndSimulated
from dali.experiments.verbs.validate.sides import TERMS, Agreement, Side, agreement, has_early_copies
from dali.policies.columns import PHASES

# ---- what was found --------------------------------------------------------------------------------


class Report:
    """Tables of a list of outcomes.  All errors are (simulated - measured) / measured."""

    def __init__(self, outcomes: Sequence[RanAndSimulated]) -> None:
        self._outcomes = list(outcomes)
        self._agreements = [agreement(each.ran[0], each.simulated) for each in self._outcomes]

    def steps(self) -> pd.DataFrame:
        """A row a step: seconds measured (median of the repeats) and simulated."""
        parts = []
        for each in self._outcomes:
            for phase in PHASES:
                measured = np.median([side.seconds(phase) for side in each.ran], axis=0)
                simulated = each.simulated.seconds(phase)
                about: dict[str, Any] = {
                    "policy": each.policy,
                    "batch": each.setting.batch,
                    "cache_share": each.setting.cache_share,
                }
                parts.append(pd.DataFrame({"measured": measured, "simulated": simulated}).assign(phase=phase, **about))
        return pd.concat(parts, ignore_index=True)

    def table(self) -> pd.DataFrame:
        """A row a policy, setting and phase."""
        rows = []
        for each, agreed in zip(self._outcomes, self._agreements, strict=True):
            for phase in PHASES:
                if len(each.simulated.seconds(phase)):
                    rows.append(_row(each, phase, agreed))
        return pd.DataFrame(rows)

    def taus(self, phase: str) -> dict[str, float]:
        """Kendall's tau of the policies' measured and simulated times in each setting."""
        found = {}
        part = self.table()
        for setting, group in part[part["phase"] == phase].groupby("setting", sort=False):
            found[str(setting)] = tau(group["measured"].to_numpy(), group["simulated"].to_numpy())
        return found

    def summary(self) -> dict[str, Any]:
        """What validation.json holds."""
        found = self.table()

        def by_policy(phase: str, column: str) -> dict[str, dict[str, Any]]:
            part = found[found["phase"] == phase]
            return {
                str(policy): dict(zip(group["setting"], group[column].tolist(), strict=True))
                for policy, group in part.groupby("policy", sort=False)
            }

        decisions = {
            f"{each.policy}, {each.setting}": {
                "layer_steps": agreed.layer_steps,
                "differing": agreed.differing,
                "first_difference": agreed.first,
                "counts": agreed.counts,
                "depends_on_times": has_early_copies([each.simulated, *each.ran]),
                "replays": each.drift is None,
                "repeats_differing": _between(each.ran),
            }
            for each, agreed in zip(self._outcomes, self._agreements, strict=True)
        }
        return {
            "decode_mape": by_policy("decode", "mape"),
            "prefill_mape": by_policy("prefill", "mape"),
            "decode_error": by_policy("decode", "error"),
            "prefill_error": by_policy("prefill", "error"),
            "layer_step_mape": by_policy("decode", "layer_mape"),
            "kendall_tau": {phase: self.taus(phase) for phase in PHASES},
            "largest_term": {phase: by_policy(phase, "largest") for phase in PHASES},
            "decisions": decisions,
        }

    def shown(self) -> tuple[str, Side, Side]:
        """The run whose step is drawn: of the policy that copies most kinds, the first such."""
        best = max(
            self._outcomes,
            key=lambda each: sum(each.simulated.counts[f"copies_{k}"] > 0 for k in ("demand", "prefetch", "swap")),
        )
        return f"{best.policy}, {best.setting}", best.ran[0], best.simulated

    def sections(self) -> list[Section]:
        """Tables for people."""
        found = self.table()
        by_phase = [(phase, found[found["phase"] == phase]) for phase in PHASES if phase in set(found["phase"])]
        return [
            Section("What must be equal", [self._equality()]),
            *(Section(f"{phase.capitalize()}: milliseconds a step", [_times(part)]) for phase, part in by_phase),
            Section("Ranking of the policies", [self._ranking()]),
            Section("Where the time error comes from", [_terms(found)]),
        ]

    def _equality(self) -> Table:
        rows = []
        for each, agreed in zip(self._outcomes, self._agreements, strict=True):
            timed = has_early_copies([each.simulated, *each.ran])
            rows.append(
                [
                    each.policy,
                    str(each.setting),
                    "yes" if each.drift is None else f"no, at call {each.drift}",
                    "yes" if each.routing else "no",
                    "yes" if agreed.equal else "no",
                    f"{agreed.differing} of {agreed.layer_steps}",
                    "yes" if timed else "no",
                    str(_between(each.ran)),
                    agreed.first or ", ".join(f"{k} {a} / {b}" for k, (a, b) in agreed.counts.items()) or "–",
                ]
            )
        head = [
            "policy",
            "setting",
            "log replays",
            "routing",
            "all equal",
            "layer steps that differ",
            "copies early",
            "differ between repeats",
            "first difference",
        ]
        caption = (
            "Log replays: a fresh planner, told what the executor reported, decides the same, so that whatever differs "
            "from the simulation does so because copies landed at other times. Where nothing is copied early, all must "
            "be equal."
        )
        return Table(head, rows, caption)

    def _ranking(self) -> Table:
        rows = []
        found = self.table()
        for phase in PHASES:
            for setting, tau in self.taus(phase).items():
                part = found[(found["phase"] == phase) & (found["setting"] == setting)]
                order = [" < ".join(part.sort_values(c)["policy"]) for c in ("measured", "simulated")]
                rows.append([setting, phase, "–" if tau != tau else f"{tau:.2f}", *order])
        return Table(["setting", "phase", "Kendall tau", "measured, fastest first", "simulated"], rows)


def tau(measured: np.ndarray, simulated: np.ndarray) -> float:
    """Kendall's tau; NaN for fewer than two policies."""
    return float(kendalltau(measured, simulated).statistic) if len(measured) > 1 else float("nan")


def _between(ran: Sequence[Side]) -> int:
    """Layer steps in which some repeat decided otherwise than the first."""
    return sum(
        any(other != first for other in others) for first, *others in zip(*(s.decisions for s in ran), strict=True)
    )


def _row(each: RanAndSimulated, phase: str, agreed: Agreement) -> dict[str, Any]:
    measured = np.median([side.seconds(phase) for side in each.ran], axis=0)
    simulated = each.simulated.seconds(phase)
    layers = np.median([side.layer_seconds(phase) for side in each.ran], axis=0)
    layer_error = each.simulated.layer_seconds(phase) / layers - 1
    terms = {name: float(np.median([side.terms(phase)[name] for side in each.ran])) for name in TERMS}
    errors = {name: value - terms[name] for name, value in each.simulated.terms(phase).items()}
    return {
        "policy": each.policy,
        "setting": str(each.setting),
        "batch": each.setting.batch,
        "cache_share": each.setting.cache_share,
        "phase": phase,
        "measured": float(measured.mean()),
        "simulated": float(simulated.mean()),
        "error": float(simulated.sum() / measured.sum() - 1),
        "mape": float(np.abs(simulated / measured - 1).mean()),
        # A model of one layer has no join between two of them.
        "layer_error": float(layer_error.mean()) if layer_error.size else float("nan"),
        "layer_mape": float(np.abs(layer_error).mean()) if layer_error.size else float("nan"),
        "spread": float(np.ptp([side.seconds(phase).sum() for side in each.ran]) / measured.sum()),
        "differing": agreed.differing,
        "planning": each.planning,
        "forced": each.forced,
        **{f"measured {name}": value for name, value in terms.items()},
        **{f"error {name}": value for name, value in errors.items()},
        "largest": max(errors, key=lambda name: abs(errors[name])),
    }


def _times(found: pd.DataFrame) -> Table:
    head = [
        "policy",
        "setting",
        "measured",
        "spread of repeats",
        "simulated",
        "error",
        "MAPE",
        "layer-step error",
        "layer-step MAPE",
    ]
    rows = [
        [
            row["policy"],
            row["setting"],
            number(1e3 * row["measured"]),
            f"{row['spread']:.1%}",
            number(1e3 * row["simulated"]),
            f"{row['error']:+.1%}",
            f"{row['mape']:.1%}",
            f"{row['layer_error']:+.1%}",
            f"{row['layer_mape']:.1%}",
        ]
        for _, row in found.iterrows()
    ]
    return Table(head, rows)


def _terms(found: pd.DataFrame) -> Table:
    rows = [
        [
            row["policy"],
            row["setting"],
            row["phase"],
            *(f"{1e3 * row[f'error {name}']:+.2f} ({1e3 * row[f'measured {name}']:.2f})" for name in TERMS),
            row["largest"],
        ]
        for _, row in found.iterrows()
    ]
    header = ["policy", "setting", "phase", *(f"{name} (measured)" for name in TERMS), "largest"]
    return Table(header, rows, "Milliseconds a step, simulated minus measured, by machine.")
