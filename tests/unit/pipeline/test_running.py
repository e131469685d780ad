"""A pipeline at work: what ends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from regatta_agent.client import Client
from regatta_agent.inputs.wanted import Wanted
from regatta_agent.pipeline import running
from regatta_agent.pipeline.frames import Frame
from regatta_agent.pipeline.running import Running
from regatta_agent.pipeline.settings import Pipeline
from regatta_protocol.errors import Retryable


class _Broken:
    """A source whose library raises what nobody expects."""

    refused = 0
    problem: str | None = None

    def frames(self) -> Iterator[Frame]:
        yield Frame("1", np.zeros((1, 2), np.float32), 0.0)
        raise IndexError("too many indices for array")

    def stop(self) -> None:
        pass


class _Away:
    """A client whose model is known."""

    def metadata(self, _model: str) -> dict[str, Any]:
        return {}


def test_a_source_that_fails_unexpectedly_ends_the_pipeline_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the service is started again; it ended well once, and nobody noticed."""
    monkeypatch.setattr(running, "wanted_by", lambda metadata: Wanted("m", (2,), "image"))
    monkeypatch.setattr(running, "open_source", lambda *_: _Broken())
    monkeypatch.setattr(running, "ask", lambda *_, **__: cast("Any", type("Reply", (), {"document": {}})))
    pipeline = Pipeline.model_validate(
        {
            "model": "m",
            "source": {"kind": "directory", "path": str(tmp_path)},
            "sinks": [{"kind": "file", "path": str(tmp_path / "out.jsonl")}],
        }
    )
    with pytest.raises(Retryable, match="the source failed: too many indices"):
        Running("p", pipeline, cast("Client", _Away()), tmp_path / "status").run()
