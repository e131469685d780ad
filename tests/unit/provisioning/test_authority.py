"""The authority: what it signs, and what it refuses to."""

from __future__ import annotations

import datetime as dt
import ipaddress
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from killing import every_kill, killed_at
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.ids import DeviceId
from regatta_provisioning.authority import Authority
from regatta_provisioning.certificates import fingerprint_of, serial_of

PI = DeviceId("pi-1")
NOW = dt.datetime(2026, 5, 1, tzinfo=dt.timezone.utc).timestamp()

_Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority", "lab", clock=lambda: NOW)


def _csr(key: _Key, *names: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def _certificate(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


_GOOD_KEYS: dict[str, Callable[[], _Key]] = {
    "P-256": _p256,
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
}
_WEAK_KEYS: dict[str, Callable[[], _Key]] = {
    "RSA-1024": lambda: rsa.generate_private_key(65537, 1024),
    "P-192": lambda: ec.generate_private_key(ec.SECP192R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", _GOOD_KEYS)
@pytest.mark.parametrize("names", [(), (PI,)])
def test_a_device_gets_a_client_certificate_of_its_own_name(
    authority: Authority, kind: str, names: tuple[str, ...]
) -> None:
    key = _GOOD_KEYS[kind]()

    certificate = _certificate(authority.sign_device_csr(_csr(key, *names), PI))

    certificate.verify_directly_issued_by(_certificate(authority.ca_pem))
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == PI
    assert certificate.public_key() == key.public_key()
    assert certificate.not_valid_after_utc.timestamp() == NOW + 90 * 86_400
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("kind", _WEAK_KEYS)
def test_a_weak_key_is_refused(authority: Authority, kind: str) -> None:
    try:
        csr = _csr(_WEAK_KEYS[kind](), PI)
    except Exception as err:  # noqa: BLE001  some builds of OpenSSL make no such key at all
        pytest.skip(f"no {kind} key can be made here: {err}")

    with pytest.raises(Rejected, match=r"too weak|no certificate signing request"):
        authority.sign_device_csr(csr, PI)


def test_a_csr_for_another_device_is_refused(authority: Authority) -> None:
    with pytest.raises(Rejected, match="asks for 'pi-2'"):
        authority.sign_device_csr(_csr(_p256(), "pi-2"), PI)
    with pytest.raises(Rejected, match="asks for"):
        authority.sign_device_csr(_csr(_p256(), PI, "regatta-server"), PI)


def test_a_csr_that_its_key_did_not_sign_is_refused(authority: Authority) -> None:
    der = bytearray(x509.load_pem_x509_csr(_csr(_p256(), PI).encode()).public_bytes(serialization.Encoding.DER))
    der[-4] ^= 0x55
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()

    with pytest.raises(Rejected, match="not signed by the key"):
        authority.sign_device_csr(forged, PI)


@pytest.mark.parametrize(
    "text", ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
)
def test_what_is_no_csr_is_refused(authority: Authority, text: str) -> None:
    with pytest.raises(Rejected, match="no certificate signing request"):
        authority.sign_device_csr(text, PI)
    with pytest.raises(Rejected, match="over the limit"):
        authority.sign_device_csr("x" * 20_000, PI)


@pytest.mark.parametrize("name", ["regatta-server", "regatta-server-2"])
def test_no_device_gets_the_servers_name(authority: Authority, name: str) -> None:
    """The broker grants everything to the server's common name."""
    with pytest.raises(Rejected, match="kept for the server"):
        authority.sign_device_csr(_csr(_p256()), DeviceId(name))
    with pytest.raises(Misuse, match="must have a name that begins"):
        authority.issue_client("pi-1")


@pytest.mark.parametrize("name", ["PI 1", "", "a/b", "a" * 65, "+"])
def test_a_name_that_is_no_device_id_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(Rejected, match="device id"):
        authority.sign_device_csr(_csr(_p256()), DeviceId(name))


def test_a_server_certificate_names_its_hosts(authority: Authority, tmp_path: Path) -> None:
    key_path, path = authority.issue_server(tmp_path / "tls", "broker", ["localhost", "127.0.0.1", "::1", "localhost"])

    certificate = _certificate(path.read_text())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert ipaddress.ip_address("::1") in names.get_values_for_type(x509.IPAddress)
    assert key_path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Misuse, match="at least one host"):
        authority.issue_server(tmp_path / "tls", "broker", [])


def test_a_new_certificate_keeps_its_key(authority: Authority, tmp_path: Path) -> None:
    """So that a kill between the two files leaves a pair that works."""
    first_key, first = authority.issue_server(tmp_path, "broker", ["a.example"])
    before = _certificate(first.read_text())
    _, second = authority.issue_server(tmp_path, "broker", ["b.example"])

    after = _certificate(second.read_text())
    assert before.public_key() == after.public_key()
    assert before.serial_number != after.serial_number
    assert serial_of(second.read_text()) == after.serial_number
    assert first_key.is_file()


def test_openssl_agrees(authority: Authority, tmp_path: Path) -> None:
    """Mosquitto checks with OpenSSL, in strict mode more than Python does."""
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl is not installed")
    ca = str(tmp_path / "ca.pem")
    Path(ca).write_text(authority.ca_pem)
    _, server = authority.issue_server(tmp_path, "broker", ["localhost"])
    _, client = authority.issue_client()
    (tmp_path / "pi.pem").write_text(authority.sign_device_csr(_csr(_p256()), PI))
    for path, purpose in ((server, "sslserver"), (client, "sslclient"), (tmp_path / "pi.pem", "sslclient")):
        done = subprocess.run(
            [*f"openssl verify -x509_strict -attime {NOW:.0f} -purpose {purpose} -CAfile".split(), ca, str(path)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

        assert done.returncode == 0, done.stdout + done.stderr


def test_the_crl_lists_what_was_revoked(authority: Authority, tmp_path: Path) -> None:
    pem = authority.sign_device_csr(_csr(_p256()), PI)
    before = x509.load_pem_x509_crl(authority.crl_pem().encode())
    authority.revoke(serial_of(pem))
    authority.revoke(serial_of(pem))

    crl = x509.load_pem_x509_crl(Authority.load(tmp_path / "authority").crl_pem().encode())
    assert [one.serial_number for one in crl] == [serial_of(pem)]
    assert len(list(before)) == 0
    ca_key = _certificate(authority.ca_pem).public_key()
    assert isinstance(ca_key, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(ca_key)
    number = x509.CRLNumber
    assert (
        crl.extensions.get_extension_for_class(number).value.crl_number
        > before.extensions.get_extension_for_class(number).value.crl_number
    )


def test_a_damaged_list_of_revocations_is_no_empty_one(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "authority" / "revoked.json").write_bytes(bytes(40))

    with pytest.raises(Misuse, match="revoked devices return"):
        authority.crl_pem()


def test_create_survives_a_kill_at_any_point(tmp_path: Path) -> None:
    def run(point: int) -> None:
        folder = tmp_path / str(point)
        with killed_at(point):
            made = Authority.create(folder, "lab")
        assert Authority.load(folder).fingerprint == made.fingerprint

    kills = every_kill(run)

    assert kills >= 5
    for point in range(kills):
        folder = tmp_path / str(point)
        assert Authority.create(folder, "lab").fingerprint == Authority.load(folder).fingerprint


def test_the_authority_is_private_and_of_one_fleet(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "a", "lab")

    assert authority.fleet == "lab"
    assert authority.fingerprint == fingerprint_of(authority.ca_pem)
    assert (tmp_path / "a" / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    with pytest.raises(Misuse, match="'lab', not of 'field'"):
        Authority.create(tmp_path / "a", "field")
    with pytest.raises(Misuse, match="create the fleet first"):
        Authority.load(tmp_path / "b")
    with pytest.raises(Misuse, match="fleet id"):
        Authority.create(tmp_path / "c", "")


def test_files_of_two_authorities_are_not_mixed(tmp_path: Path) -> None:
    Authority.create(tmp_path / "a", "lab")
    Authority.create(tmp_path / "b", "lab")
    shutil.copy(tmp_path / "a" / "ca-key.pem", tmp_path / "b" / "ca-key.pem")

    with pytest.raises(Misuse, match="do not belong together"):
        Authority.load(tmp_path / "b")
