"""Runs one file of the suite for CTest: exit status 77 where nothing of it could run."""

import sys

SKIPPED = 77

try:
    import pytest
except ImportError:
    print(f"skipped: {sys.executable} has no pytest")
    sys.exit(SKIPPED)

status = pytest.main(["-q", "-rs", "-p", "no:cacheprovider", *sys.argv[1:]])
sys.exit(SKIPPED if status == pytest.ExitCode.NO_TESTS_COLLECTED else status)
