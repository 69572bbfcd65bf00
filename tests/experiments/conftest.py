"""A browser for the tests of pages."""

from __future__ import annotations

import browser
import pytest


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    program = browser.find()
    if program is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(browser.NAMES)})")
    with browser.browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened
