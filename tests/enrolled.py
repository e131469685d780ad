"""A state folder of a device that is enrolled with a throw-away wire: what tests of the whole agent start from."""

from __future__ import annotations

from pathlib import Path

from mosquitto import Wire
from regatta_provisioning.assignments import AssignmentKey
from regatta_provisioning.identity import IdentityFile
from regatta_provisioning.repository import MetadataRepository

__all__ = ["enrolled"]


def enrolled(wire: Wire, folder: Path, device: str) -> Path:
    """Return a state folder with an identity that this wire's authority gave."""
    identity = folder / "state" / "identity"
    identity.mkdir(parents=True)
    config = wire.mqtt_config(device)
    assert config.key_path is not None and config.cert_path is not None and config.ca_path is not None
    (identity / "key.pem").write_bytes(config.key_path.read_bytes())
    (identity / "cert.pem").write_bytes(config.cert_path.read_bytes())
    (identity / "ca.pem").write_bytes(config.ca_path.read_bytes())
    (identity / "root.json").write_text(MetadataRepository.create(folder / "metadata").root_json)
    key = AssignmentKey.create(folder / "assignments")
    file = IdentityFile.model_validate(
        {
            "fleet": "fleet", "device": device, "broker_host": config.host, "broker_port": config.port,
            "api_url": "https://localhost", "assignment_key": key.public_key_b64, "assignment_key_id": key.key_id,
            "key": "key.pem", "certificate": "cert.pem", "ca": "ca.pem", "root": "root.json",
        }
    )  # fmt: skip
    (identity / "identity.json").write_text(file.model_dump_json())
    return folder / "state"
