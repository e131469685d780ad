"""Cameras of V4L2, in a virtual machine that has one: the tests of guest_v4l2.py; `./run check-sources` brings it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sources.virtual_machine import obstacle, run_in_guest

pytest.importorskip("cv2", reason="OpenCV is not installed (extra camera): ./run check-sources")

_TESTS = Path(__file__).with_name("guest_v4l2.py")
_TIMEOUT_S = 400.0
_OBSTACLE = obstacle()


@pytest.mark.timeout(_TIMEOUT_S + 30)
@pytest.mark.skipif(_OBSTACLE is not None, reason=str(_OBSTACLE))
def test_cameras_of_v4l2_in_a_machine_that_has_one(tmp_path: Path) -> None:
    """The guest's pytest passes all of its tests."""
    options = ["-q", "-n0", "-p", "no:cacheprovider", "--basetemp=/run/tmp/pytest", "--color=no"]
    status, said = run_in_guest([sys.executable, "-B", "-m", "pytest", *options, str(_TESTS)], tmp_path, _TIMEOUT_S)
    assert status == 0, said[-20_000:]
    assert " passed" in said and "skipped" not in said
