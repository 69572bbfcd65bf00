"""The conformance suite for policies from anywhere: what has to hold for every one of them.

from dali.testing import check_policy, checks

check_policy(MyCache)                                     raises AssertionError that says what is wrong

@pytest.mark.parametrize("check", checks(MyCache))        each check a test of its own
def test_my_cache(check):
    check()
"""

from dali.testing.checks import Check, check_policy, checks

__all__ = ["Check", "check_policy", "checks"]
