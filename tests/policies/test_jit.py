"""Where compiled kernels are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import numba
from dali.policies.core.jit import CACHE_FOLDER
from dali.policies.core.transitions import begin_step
print(numba.config.CACHE_DIR, CACHE_FOLDER, begin_step.stats.cache_path, sep="\\n")
"""


def test_numba_keeps_its_own_setting_and_our_kernels_their_folder(tmp_path: Path) -> None:
    for own, base in ((str(tmp_path), tmp_path), ("", tmp_path / "xdg")):
        environment = os.environ | {"NUMBA_CACHE_DIR": own, "XDG_CACHE_HOME": str(tmp_path / "xdg")}
        run = [sys.executable, "-c", PROGRAM]
        found = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        setting, folder, kernel = found.stdout.split("\n")[:3]
        assert setting == own
        assert Path(folder).parent == base / "dali-moe"
        assert Path(folder) in Path(kernel).parents
