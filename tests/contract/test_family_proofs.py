"""The table of what is proved, in docs/compatibility.md, is that of the tests."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_table_of_what_is_proved_is_that_of_the_tests():
    command = [sys.executable, "-m", "tests.contract.proofs"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    lines = [line for line in found.splitlines() if line.startswith("|")]
    assert len(lines) > 20
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page, (
        "docs/compatibility.md is old; take the table of `python -m tests.contract.proofs`"
    )
