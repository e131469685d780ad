"""The verifier as a child process, and the lightness of what the control process imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regatta_protocol.codec import decode
from regatta_protocol.errors import Misuse, Rejected, Retryable, Untrusted
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import Assignment
from regatta_provisioning.assignments import AssignmentKey
from regatta_provisioning.verifier import verify
from regatta_provisioning.verifying import (
    MAX_JOB_BYTES,
    AssignmentJob,
    VerifyResult,
    command,
    parse_job,
    refusal,
)
from signed_fleet import FIRST, Device, SignedFleet

PI = DeviceId("pi-1")


def _child(job: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(), input=job, capture_output=True, timeout=60, check=False)


def _assignment_job(folder: Path, generation: int, min_generation: int) -> AssignmentJob:
    key = AssignmentKey.create(folder)
    signed = key.sign(Assignment(fleet="lab", device=PI, generation=generation, issued_at=0.0))
    return AssignmentJob(
        signed=signed,
        fleet="lab",
        device=PI,
        assignment_key=key.public_key_b64,
        assignment_key_id=key.key_id,
        min_generation=min_generation,
    )


def test_a_child_verifies_metadata(tmp_path: Path) -> None:
    fleet = SignedFleet(tmp_path / "fleet")
    fleet.repository.add_target(FIRST, b"one")
    device = Device(tmp_path / "device").pin(fleet.repository.root_json)

    done = _child(device.job(fleet.answer()).model_dump_json().encode())

    assert done.returncode == 0, done.stderr
    result = decode(VerifyResult, done.stdout)
    assert result.require().targets[FIRST].length == 3
    assert result == device.verify(fleet.answer())


def test_a_child_verifies_an_assignment(tmp_path: Path) -> None:
    done = _child(_assignment_job(tmp_path, 5, 5).model_dump_json().encode())

    assert done.returncode == 0, done.stderr
    assignment = decode(VerifyResult, done.stdout).require().assignment
    assert assignment is not None
    assert assignment.generation == 5


@pytest.mark.parametrize("job", [b"", b"{}", b'{"kind": "other"}', b"\xff", b"[" * 10_000])
def test_what_is_no_job_is_answered_with_misuse(job: bytes) -> None:
    with pytest.raises(Misuse, match="no verifier's job"):
        parse_job(job)


def test_a_job_over_the_limit_is_refused_by_a_child() -> None:
    result = decode(VerifyResult, _child(b" " * (MAX_JOB_BYTES + 1)).stdout)

    with pytest.raises(Misuse, match="over the limit"):
        result.require()


def test_an_older_generation_is_refused(tmp_path: Path) -> None:
    assert verify(_assignment_job(tmp_path, 5, 4)).ok
    with pytest.raises(Untrusted, match="generation 4, but this device has taken up 5"):
        verify(_assignment_job(tmp_path, 4, 5)).require()


@pytest.mark.parametrize("kind", [Untrusted, Rejected, Retryable, Misuse])
def test_a_refusal_keeps_its_family(kind: type[Untrusted | Retryable | Misuse]) -> None:
    with pytest.raises(kind, match="because") as caught:
        refusal(kind("because")).require()

    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("identity", ("cryptography", "tuf", "securesystemslib", "requests", "numpy")),
        ("tokens", ("cryptography", "tuf", "securesystemslib", "requests", "numpy")),
        ("enrollment", ("cryptography", "tuf", "securesystemslib", "requests", "numpy")),
        ("verifying", ("cryptography", "tuf", "securesystemslib", "requests", "numpy")),
        ("install", ("cryptography", "tuf", "securesystemslib", "requests", "numpy")),
        ("verifier", ("tuf", "securesystemslib", "requests", "numpy")),
        ("enroll", ("requests", "numpy", "urllib3")),
    ],
)
def test_what_the_control_process_imports_is_light(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, regatta_provisioning.{module}; print(*{forbidden!r} & sys.modules.keys())"
    code = code.replace(repr(forbidden), f"set({forbidden!r})")

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == ""
