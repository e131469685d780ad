"""The section [serving]: what may listen where."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from regatta_agent.config import load_config
from regatta_agent.serving.addresses import is_loopback, split_address
from regatta_agent.serving.listening import read_token
from regatta_agent.serving.settings import ServingSettings
from regatta_protocol.errors import Misuse

TLS = 'tls_certificate = "/c.pem"\ntls_key = "/k.pem"\n'
TOKEN = 'token_file = "/token"\n'


def _load(folder: Path, section: str) -> ServingSettings:
    path = folder / "agent.toml"
    path.write_text(f"[serving]\n{section}")
    return load_config(path).serving


@pytest.mark.parametrize(
    "section",
    [
        "",
        'tcp = { m = "127.0.0.1:8000", n = "[::1]:8000" }',
        TLS + TOKEN + 'tcp = { m = "0.0.0.0:8000", n = "[::]:8001" }',
        TLS + 'tcp = { m = "127.0.0.1:8000" }',
    ],
)
def test_sound_sections_are_taken(tmp_path: Path, section: str) -> None:
    """Loopback needs nothing more; beyond it stands behind TLS and a token."""
    assert _load(tmp_path, section).shared_memory is False


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ('tcp = { m = "0.0.0.0:8000" }', "tls_certificate, tls_key, token_file"),
        (TLS + 'tcp = { m = "192.168.1.5:8000" }', "token_file"),
        (TOKEN + 'tcp = { m = "[::]:8000" }', "tls_certificate, tls_key"),
        ('tls_key = "/k.pem"', "tls_certificate"),
        ('tls_certificate = "/c.pem"', "tls_key"),
        ('tcp = { m = "localhost:8000" }', "localhost:8000"),
        ('tcp = { m = "127.0.0.1:0" }', "tcp.m"),
        ('tcp = { m = "127.0.0.1:70000" }', "70000"),
        ('tcp = { m = "127.0.0.1" }', "HOST:PORT"),
        ('tcp = { m = "127.0.0.1:80", n = "127.0.0.1:80" }', "tcp.m"),
        ('tcp = { m = "127.0.0.1:80" }\ngrpc = true\ngrpc_tcp = { m = "127.0.0.1:80" }', "grpc_tcp.m and tcp.m"),
        ('grpc = true\ngrpc_tcp = { m = "0.0.0.0:8001" }', "grpc_tcp.m"),
        ('grpc_tcp = { m = "127.0.0.1:8001" }', "set grpc = true"),
        ("queue_length = 0", "queue_length"),
        ("ports = 1", "serving.ports"),
    ],
)
def test_unsafe_or_wrong_sections_are_refused_by_name(tmp_path: Path, section: str, named: str) -> None:
    """The error names the file, the section and the key to set."""
    with pytest.raises(Misuse) as refused:
        _load(tmp_path, section)

    assert "agent.toml" in str(refused.value)
    assert "serving" in str(refused.value)
    assert named in str(refused.value)


@pytest.mark.parametrize("missing", ["grpc", "google.protobuf", "google"])
def test_grpc_without_its_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """The settings are refused before a worker is started that could not load it."""
    monkeypatch.delitem(sys.modules, "google.protobuf", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(Misuse, match=r"pip install 'regatta-edge\[grpc\]'"):
        _load(tmp_path, "grpc = true")


def test_addresses_are_told_apart() -> None:
    """IPv6 stands in brackets; all of 127.0.0.0/8 is loopback."""
    assert split_address("[::1]:80") == ("::1", 80)
    assert [is_loopback(host) for host in ("::1", "127.9.9.9", "0.0.0.0", "10.0.0.1")] == [True, True, False, False]


def test_a_token_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    """Sixteen bytes at least, in the first line of a file that is there."""
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\nanything\n")

    assert read_token(path) == b"0123456789abcdef"
    path.write_text("short\n")
    with pytest.raises(Misuse, match="5 bytes"):
        read_token(path)
    with pytest.raises(Misuse, match="cannot be read"):
        read_token(tmp_path / "absent")
