"""Private keys in files: PKCS#8 PEM, mode 0600 in a folder of mode 0700, written durably.

Everything of this room that keeps a private key does it here. Keys are not encrypted: whoever runs the service must
start it without a passphrase, so the protection is the folder's owner (and systemd's credentials, where used).
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from regatta_protocol.durable import read_bounded, sync_folder, write_durably
from regatta_protocol.errors import Misuse

__all__ = ["make_csr", "make_private_folder", "read_ec_key", "read_ed25519_key", "write_private_key"]

_MAX_KEY_BYTES = 16_384  # an RSA key of 4096 bits takes 3.3 kB; ours take 0.3


def make_private_folder(folder: Path) -> None:
    """Make the folder with mode 0700 where it is missing, durably, and take group and others out of it.

    Raises:
        OSError: when it cannot be made.
    """
    if not folder.parent.is_dir():
        make_private_folder(folder.parent)
    if not folder.is_dir():
        folder.mkdir(mode=0o700)
        sync_folder(folder.parent)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def write_private_key(path: Path, key: EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
    """Put the key in `path`, readable for its owner only."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_durably(path, pem, mode=0o600)


def read_ec_key(path: Path) -> EllipticCurvePrivateKey:
    """Return the elliptic-curve key in `path`.

    Raises:
        Misuse: when the file is missing, damaged, or holds another kind of key.
    """
    key = _read(path)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise Misuse(f"{path} holds a {type(key).__name__} where an EC key belongs: it is another key's file")
    return key


def read_ed25519_key(path: Path) -> Ed25519PrivateKey:
    """Return the Ed25519 key in `path`.

    Raises:
        Misuse: when the file is missing, damaged, or holds another kind of key.
    """
    key = _read(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise Misuse(f"{path} holds a {type(key).__name__} where an Ed25519 key belongs: it is another key's file")
    return key


def make_csr(key: EllipticCurvePrivateKey, common_name: str | None) -> str:
    """Return a certificate signing request (PEM), which proves that we hold the key; None leaves the subject empty."""
    names = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names)).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def _read(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(read_bounded(path, _MAX_KEY_BYTES), password=None)
    except FileNotFoundError as err:
        raise Misuse(f"the private key {path} is not here: put it back from your backup, or mount its medium") from err
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise Misuse(f"{path} holds no readable private key ({err}): put it back from your backup") from err
