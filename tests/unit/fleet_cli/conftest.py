"""A fake fleet that the command finds by its environment, and a bundle to push there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regatta_fleet.models.bundle import write_bundle
from regatta_fleet.schemas import BundleDraft
from regatta_fleet.testing import FakeFleet
from regatta_fleet.testing_app import fake_app, serve
from regatta_protocol.ids import Digest, digest_of_bytes
from sample_fleet import harbor


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    found = harbor()
    with serve(fake_app(found)) as url:
        monkeypatch.setenv("REGATTA_URL", url)
        monkeypatch.setenv("REGATTA_TOKEN", found.token)
        yield found


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose files are no models: the fake server does not look."""
    files: dict[Digest, Path] = {}

    def file(name: str, data: bytes) -> dict[str, Any]:
        path = tmp_path / name
        path.write_bytes(data)
        files[digest_of_bytes(data)] = path
        return {"digest": digest_of_bytes(data), "size_bytes": len(data)}

    def variant(name: str, size: int, p50_us: float) -> dict[str, Any]:
        latency = {"samples": 100, "p50_us": p50_us, "p90_us": p50_us, "p99_us": p50_us}
        accuracy = {"correct": 340, "total": 360}
        model = file(f"{name}.tflite", bytes(size))
        parts = {"inputs": [], "outputs": [], "latency": latency, "accuracy": accuracy, "steps": ["quantize"]}
        return {"name": name, "precision": name, "file": model, **parts}

    variants = [variant("float32", 4000, 80.0), variant("int8", 1000, 20.0)]
    draft = BundleDraft.model_validate({"variants": variants, "golden": file("golden.npz", b"golden"), "source": "d"})
    write_bundle(tmp_path / "bundle", draft, files)
    return tmp_path / "bundle"
