"""What `dali report` shows of a calibration."""

from __future__ import annotations

from dali.experiments.page.contents import Contents, measured_machine, of_profiles
from dali.experiments.page.reading import Folder
from dali.policies.types import InputError


def contents(folder: Folder) -> Contents:
    """Figures of the profile, and the machine it was measured on."""
    if not folder.profiles:
        raise InputError(f"{folder.place}: found no .yaml file of measured costs, expected one")
    return Contents(of_profiles(folder), machine=measured_machine(folder))
