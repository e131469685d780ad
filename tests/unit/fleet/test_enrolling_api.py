"""The devices' HTTP face: enrolment, renewal, revocation, and how often it may be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from api_rig import Key, Server, problem, serving
from regatta_fleet.api.limits import RateLimit
from regatta_protocol.ids import DeviceId
from regatta_provisioning.authority import Authority
from regatta_provisioning.certificates import serial_of
from regatta_provisioning.enrollment import EnrollResponse


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


def test_enrolment(fleet: Server) -> None:
    """Token for certificate, once; the same key may ask again; group and board are kept."""
    key = Key()
    body = key.request(fleet.token(group="lab"), device="pi-1", board={"model": "Pi 5"})
    first = fleet.device.post("/api/v1/enroll", json=body)
    again = fleet.device.post("/api/v1/enroll", json=key.request(str(body["secret"]), device="pi-1"))
    answer = EnrollResponse.model_validate_json(first.content)

    assert first.content == again.content
    assert (answer.device, answer.fleet, answer.broker_port) == ("pi-1", "fleet-1", 2)
    assert fleet.device.get("/api/v1/ca").text == fleet.authority.ca_pem
    (shown,) = fleet.operator.get("/api/v1/devices").json()
    assert (shown["id"], shown["group"], shown["board"]["model"]) == ("pi-1", "lab", "Pi 5")
    assert fleet.operator.get("/api/v1/devices/pi-1").json()["races"] == []
    assert "did you mean 'pi-1'" in problem(fleet.operator.get("/api/v1/devices/pi1"), 404)
    assert "regatta device list" in problem(fleet.operator.get("/api/v1/devices/nothing-alike"), 404)


def test_enrolments_that_are_refused(fleet: Server) -> None:
    """Unknown, used, expired, for another device, an id that is taken or kept, no CSR: each says which."""
    post = fleet.device.post
    url = "/api/v1/enroll"
    key = Key()
    used = fleet.token()
    assert post(url, json=key.request(used, device="pi-1")).status_code == 200

    assert "not known" in problem(post(url, json=key.request("A" * 32)), 401)
    assert "used already, by pi-1" in problem(post(url, json=Key().request(used)), 409)
    assert "is for device 'pi-2'" in problem(post(url, json=key.request(fleet.token(device="pi-2"), device="x")), 403)
    assert "is taken" in problem(post(url, json=Key().request(fleet.token(), device="pi-1")), 409)
    assert "kept for the server" in problem(post(url, json=key.request(fleet.token(), device="regatta-server")), 422)
    assert "no request for a certificate" in problem(
        post(url, json={"secret": fleet.token(), "csr_pem": "nonsense"}), 422
    )
    assert "secret" in problem(post(url, json={"secret": "short", "csr_pem": ""}), 422)
    assert "over the limit" in problem(post(url, content=b" " * 200_000), 413)
    late = fleet.token(valid_s=60)
    fleet.clock[0] += 61
    assert "expired 1 s ago" in problem(post(url, json=key.request(late)), 410)
    fleet.clock[0] += 4000
    assert "expired" in problem(post(url, json=key.request(used)), 410)


def test_renewal(fleet: Server) -> None:
    """The holder of the key gets its next certificate; revoking takes both."""
    key = Key()
    first = fleet.device.post("/api/v1/enroll", json=key.request(fleet.token(), device="pi-1")).json()
    answer = fleet.device.post("/api/v1/renew", json=key.renewal(first["certificate_pem"]))
    second = answer.json()["certificate_pem"]

    assert answer.status_code == 200
    assert second != first["certificate_pem"]
    assert serial_of(second) != serial_of(first["certificate_pem"])
    assert fleet.device.post("/api/v1/renew", json=key.renewal(second)).status_code == 200
    assert fleet.operator.delete("/api/v1/devices/pi-1").status_code == 204
    assert f"{serial_of(second):x}" in (fleet.crl_path.parent / "authority" / "revoked.json").read_text()
    for certificate in (first["certificate_pem"], second):
        assert fleet.device.post("/api/v1/renew", json=key.renewal(certificate)).status_code in (403, 422)


def test_a_certificate_that_has_ended_is_renewed(fleet: Server) -> None:
    """A device that was off for a year is let in again; certificates that nobody can show any more are forgotten."""
    key = Key()
    first = fleet.device.post("/api/v1/enroll", json=key.request(fleet.token(), device="pi-1")).json()
    renewal = key.renewal(first["certificate_pem"])
    lost = fleet.device.post("/api/v1/renew", json=renewal).json()["certificate_pem"]
    fleet.clock[0] = time.time() + 400 * 86_400

    assert fleet.device.post("/api/v1/renew", json=renewal).status_code == 200
    assert "enrolled anew" in problem(fleet.device.post("/api/v1/renew", json=key.renewal(lost)), 403)


def test_renewals_that_are_refused(fleet: Server) -> None:
    """Another's certificate, another authority's, no certificate, one from before the device enrolled anew."""
    post = fleet.device.post
    url = "/api/v1/renew"
    old, key, other = Key(), Key(), Key()
    before = post("/api/v1/enroll", json=old.request(fleet.token(), device="pi-1")).json()["certificate_pem"]
    mine = post("/api/v1/enroll", json=key.request(fleet.token(device="pi-1"))).json()["certificate_pem"]
    stranger = Authority.create(fleet.crl_path.parent / "stranger", "fleet-1")
    forged = stranger.sign_device_csr(str(key.request("")["csr_pem"]), DeviceId("pi-1"))

    assert "of another key" in problem(post(url, json=other.renewal(mine)), 422)
    assert "not of this fleet" in problem(post(url, json=key.renewal(forged)), 422)
    assert "no certificate in PEM form" in problem(post(url, json=key.renewal("nonsense")), 422)
    assert "is not valid" in problem(post(url, json=key.renewal(fleet.authority.ca_pem)), 422)
    assert "is revoked" in problem(post(url, json=old.renewal(before)), 422)
    assert post(url, json=key.renewal(mine)).status_code == 200


def test_a_device_without_a_name_gets_one(fleet: Server) -> None:
    """The token's, or a fresh one."""
    named = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(device="pi-7")))
    fresh = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token()))

    assert named.json()["device"] == "pi-7"
    assert fresh.json()["device"].startswith("device-")


def test_a_device_enrols_anew_by_a_token_of_its_own(fleet: Server) -> None:
    """Its old certificate is revoked."""
    first = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(), device="pi-1")).json()
    second = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(device="pi-1"))).json()

    crl = x509.load_pem_x509_crl(fleet.crl_path.read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(serial_of(first["certificate_pem"])) is not None
    assert crl.get_revoked_certificate_by_serial_number(serial_of(second["certificate_pem"])) is None
    assert fleet.reloads == [1]


def test_a_revoked_device(fleet: Server) -> None:
    """Its certificate is on the list, its row marked; asking twice does no harm; an unknown one is 404."""
    enrolled = fleet.device.post("/api/v1/enroll", json=Key().request(fleet.token(), device="pi-1")).json()
    for _ in range(2):
        assert fleet.operator.delete("/api/v1/devices/pi-1").status_code == 204

    crl = x509.load_pem_x509_crl(fleet.crl_path.read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(serial_of(enrolled["certificate_pem"])) is not None
    assert fleet.operator.get("/api/v1/devices/pi-1").json()["revoked"]
    problem(fleet.operator.delete("/api/v1/devices/nobody"), 404)


def test_too_many_attempts_to_enrol(fleet: Server) -> None:
    """From one address, with words on when to come back."""
    body = Key().request("A" * 32)
    answers = [fleet.device.post("/api/v1/enroll", json=body) for _ in range(61)]

    assert [answer.status_code for answer in answers[:60]] == [401] * 60
    assert "try again" in problem(answers[60], 429)
    assert answers[60].headers["Retry-After"]


def test_rate_limit_forgets_and_refills() -> None:
    """A burst, then a steady rate; keys over the bound are forgotten, oldest first."""
    now = [0.0]
    limit = RateLimit(2, 1.0, lambda: now[0], keys=2)

    assert [limit.allow("a") for _ in range(3)] == [True, True, False]
    now[0] += 1
    assert [limit.allow("a") for _ in range(2)] == [True, False]
    assert all(limit.allow(key) for key in ("b", "c"))
    assert limit.allow("a")
