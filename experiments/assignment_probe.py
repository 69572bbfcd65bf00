"""Asks several assignment policies about the same layer steps."""

from __future__ import annotations

import time

import numpy as np

from dali.policies.assign.objective import makespan, paper_makespan
from dali.policies.types import Bools, Capacity, Shape
from dali.policies.view import AssignmentPolicy, LayerView

CALL = ("assignment", "seconds", "makespan", "paper", "layer_step")


class AssignmentProbe:
    """Answers as one assignment policy would, and asks the others about the same views but for the first `skip`.

    rows  entries of `CALL`: seconds of the call, makespan and DALI's objective of the answer
    """

    def __init__(self, leader: str, policies: dict[str, AssignmentPolicy], seldom: str, every: int, skip: int) -> None:
        self.leader, self.policies, self.seldom, self.every, self.skip = leader, policies, seldom, every, skip
        self.overlap = policies[leader].overlap
        self.rows: list[tuple[str, float, float, float, int]] = []
        self._count = 0

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Reset all of them."""
        for policy, own in zip(self.policies.values(), rng.spawn(len(self.policies)), strict=True):
            policy.reset(shape, capacity, own)

    def assign(self, view: LayerView) -> Bools:
        """Bool [U]."""
        counts = self._count >= self.skip
        for name, policy in self.policies.items():
            if name != self.leader and (not counts or (name == self.seldom and self._count % self.every)):
                continue
            began = time.perf_counter()
            on_gpu = policy.assign(view)
            seconds = time.perf_counter() - began
            if counts:
                self.rows.append((name, seconds, makespan(view, on_gpu), paper_makespan(view, on_gpu), self._count))
            if name == self.leader:
                answer = on_gpu.copy()
        self._count += 1
        return answer
