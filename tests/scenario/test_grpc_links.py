"""With gRPC set, the model's second link goes where the first goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_rig import MODEL, Rig
from regatta_agent.serving.spec import MAX_SPEC_BYTES, ServeSpec
from regatta_protocol.plain import read_json

pytest.importorskip("grpc", reason="the extra grpc is not installed")


def test_the_link_of_grpc_follows_the_model_s(tmp_path: Path) -> None:
    """Both lead to the worker of the version that serves, through an update, and both go with the model."""
    address = "127.0.0.1:8001"
    rig = Rig(tmp_path, serving={"grpc": True, "grpc_tcp": {MODEL: address}}).start()
    run = rig.config.run_dir
    link, grpc_link = run / f"{MODEL}.sock", run / f"{MODEL}.grpc"

    for version in (1, 2):
        rig.fleet.push(version)
        rig.fleet.assign(version)
        assert rig.run(until=rig.committed(version))
        specs = [
            read_json(ServeSpec, Path(child.argv[3]).read_bytes(), MAX_SPEC_BYTES)
            for child in rig.launcher.alive("worker:")
        ]
        (spec,) = [one for one in specs if one.version == version]
        assert link.resolve() == spec.socket_path.resolve()
        assert spec.grpc_path is not None
        assert grpc_link.resolve() == spec.grpc_path.resolve() != link.resolve()
        assert (spec.grpc_tcp, spec.link_path) == (address, link)

    rig.restart()
    assert not grpc_link.is_symlink(), "what led to a worker that is gone"
    assert rig.run(until=rig.committed(2))
    assert grpc_link.is_symlink()
    rig.fleet.assign(None)
    assert rig.run(until=lambda: rig.state(2) == "retired")
    assert rig.run(until=lambda: not link.is_symlink() and not grpc_link.is_symlink())
