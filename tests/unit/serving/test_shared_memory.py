"""Registered regions: whatever a client does to its object, a request gets an error and the worker lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_agent.serving.exchange import Request
from regatta_agent.serving.regions import answer_regions
from regatta_agent.serving.registry import Registry
from regatta_agent.serving.shared_memory import MAX_REGIONS, RegionBody, Regions
from regatta_protocol.errors import Rejected


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    return _regions(tmp_path)


def _regions(folder: Path) -> Regions:
    """Return the regions as one worker sees them; its objects lie in the folder."""
    made = Regions(Registry(folder / "regions"), folder)
    made.limit_bytes = 1 << 20
    return made


def _object(folder: Path, name: str = "o", size: int = 100) -> Path:
    path = folder / name
    path.write_bytes(bytes(index % 256 for index in range(size)))
    return path


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _body(key: str = "/o", offset: int = 0, byte_size: int = 100) -> RegionBody:
    return RegionBody(key=key, offset=offset, byte_size=byte_size)


def test_what_is_written_is_read(tmp_path: Path, regions: Regions) -> None:
    """Offsets add up: of the region in its object, and of the tensor in the region."""
    path = _object(tmp_path)
    regions.register("r", _body(offset=10, byte_size=50))

    assert bytes(regions.read("r", 5, 3)) == b"\x0f\x10\x11"
    regions.write("r", 47, 3, b"abc")
    assert path.read_bytes()[57:60] == b"abc"
    assert regions.status("r") == [{"name": "r", "key": "/o", "offset": 10, "byte_size": 50}]


@given(size=st.integers(0, 200), offset=st.integers(0, 120), count=st.integers(0, 120))
def test_a_read_is_whole_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, size: int, offset: int, count: int
) -> None:
    """Whatever size the object is given after registration, exactly the bytes asked for come, or Rejected."""
    folder = tmp_path_factory.getbasetemp() / "whole"
    folder.mkdir(exist_ok=True)
    path, regions = _object(folder), _regions(folder)
    regions.register("r", _body())
    os.truncate(path, size)

    fits = size >= 100 and offset + count <= 100
    try:
        data = regions.read("r", offset, count)
    except Rejected:
        assert not fits
    else:
        assert fits and len(data) == count
    regions.unregister(None)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (_body(key="/absent"), "no shared-memory object"),
        (_body(key="/a/b"), "no key"),
        (_body(key="/.."), "no key"),
        (_body(key="/folder"), "cannot be opened|no shared-memory object"),
        (_body(key="/link"), "cannot be opened"),
        (_body(key="/pipe"), "no shared-memory object"),
        (_body(byte_size=101), "100 bytes now"),
        (_body(offset=1), "100 bytes now"),
        (_body(offset=1 << 60, byte_size=1 << 60), "100 bytes now"),
    ],
)
def test_what_is_no_region_is_not_registered(tmp_path: Path, regions: Regions, body: RegionBody, says: str) -> None:
    """Key, kind of file, offset and size are checked, and a refused one leaves no descriptor behind."""
    target = _object(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    before = _descriptors()

    with pytest.raises(Rejected, match=says):
        regions.register("r", body)

    assert regions.status(None) == []
    assert _descriptors() == before


def test_a_removed_object_is_told_and_makes_room(tmp_path: Path, regions: Regions) -> None:
    """Its regions answer with an error; when all places are taken they are given to others."""
    before = _descriptors()
    path = _object(tmp_path)
    for number in range(MAX_REGIONS):
        regions.register(f"r{number}", _body())
    _object(tmp_path, "other")
    with pytest.raises(Rejected, match="is the limit"):
        regions.register("one-more", _body("/other"))
    with pytest.raises(Rejected, match="registered already"):
        regions.register("r0", _body("/other"))

    path.unlink()

    with pytest.raises(Rejected, match="was removed"):
        regions.read("r0", 0, 1)
    with pytest.raises(Rejected, match="was removed"):
        regions.write("r0", 0, 1, b"a")
    regions.register("one-more", _body("/other"))
    assert [one["name"] for one in regions.status(None)] == ["one-more"]
    regions.unregister("one-more")
    regions.unregister("unknown")
    assert _descriptors() == before


def test_every_worker_of_a_model_knows_its_regions(tmp_path: Path) -> None:
    """What one was told the other reads and writes, and forgets, and takes for what it is now."""
    first, second = _regions(tmp_path), _regions(tmp_path)
    before = _descriptors()
    path = _object(tmp_path)
    first.register("r", _body(offset=10, byte_size=50))

    assert bytes(second.read("r", 0, 2)) == b"\x0a\x0b"
    second.write("r", 0, 2, b"ab")
    assert (bytes(first.read("r", 0, 2)), path.read_bytes()[10:12]) == (b"ab", b"ab")
    assert second.status(None) == first.status(None) != []
    with pytest.raises(Rejected, match="registered already"):
        second.register("r", _body())

    second.unregister("r")
    with pytest.raises(Rejected, match="not registered"):
        first.read("r", 0, 1)
    _object(tmp_path, "other", 7)
    second.register("r", _body("/other", byte_size=7))
    assert bytes(first.read("r", 6, 1)) == b"\x06"
    with pytest.raises(Rejected, match="do not lie"):
        first.read("r", 6, 2)
    first.unregister(None)
    second.unregister(None)
    assert _descriptors() == before


def test_an_object_made_anew_is_another(tmp_path: Path) -> None:
    """A worker that comes later does not take it for the one that was registered under its key."""
    path = _object(tmp_path)
    _regions(tmp_path).register("r", _body())
    path.rename(tmp_path / "kept")  # so that its inode is not given to the new one
    _object(tmp_path)

    with pytest.raises(Rejected, match="was removed"):
        _regions(tmp_path).read("r", 0, 1)


def test_tensors_over_the_limits_are_refused(tmp_path: Path, regions: Regions) -> None:
    """A read is as large as the model's inputs allow, a write as large as its place."""
    _object(tmp_path)
    regions.register("r", _body())
    regions.limit_bytes = 10

    with pytest.raises(Rejected, match="limit of 10"):
        regions.read("r", 0, 11)
    with pytest.raises(Rejected, match="shared_memory_byte_size is 2"):
        regions.write("r", 0, 2, b"abc")
    with pytest.raises(Rejected, match="not registered"):
        regions.read("q", 0, 1)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        (b"GET", "status", 200),
        (b"POST", "unregister", 200),
        (b"POST", "region/a%2Fb/unregister", 200),
        (b"GET", "region/r/register", 405),
        (b"POST", "status", 405),
        (b"POST", "register", 404),
        (b"POST", "region/r/map", 404),
        (b"GET", "", 404),
    ],
)
def test_the_routes(regions: Regions, method: bytes, path: str, status: int) -> None:
    """Each route has its method, and nobody from elsewhere or from a web page is answered."""
    request = Request(method, f"/v2/systemsharedmemory/{path}", {}, b"")

    assert answer_regions(regions, request, path.split("/")).status == status
    assert answer_regions(None, request, path.split("/")).status == 404
    far = Request(method, request.path, {}, b"", local=False)
    assert answer_regions(regions, far, path.split("/")).status == 404
    forged = Request(method, request.path, {b"origin": b"http://example.org"}, b"")
    assert answer_regions(regions, forged, path.split("/")).status in (403, 404, 405)
