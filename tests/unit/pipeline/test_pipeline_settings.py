"""A pipeline is a few lines of TOML; a key that is unknown or wrong is named in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from regatta_agent.pipeline.settings import StreamSettings, load_pipelines
from regatta_agent.pipeline.streams import stream_command, without_password
from regatta_protocol.errors import Misuse

_GATE = """
[gate]
model = "ssd"
source = { kind = "directory", path = "/in" }
sinks = [{ kind = "file", path = "/out.jsonl" }]
"""


def _loaded(tmp_path: Path, text: str) -> object:
    (tmp_path / "p.toml").write_text(text)
    return load_pipelines(tmp_path / "p.toml")


def test_a_few_lines_are_enough(tmp_path: Path) -> None:
    """A folder loses nothing by default, what is live drops the oldest."""
    (tmp_path / "p.toml").write_text(_GATE + _GATE.replace("gate", "cam").replace('"directory", path', '"stream", url'))

    known = load_pipelines(tmp_path / "p.toml")

    assert {name: one.policy for name, one in known.items()} == {"gate": "block", "cam": "drop-oldest"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_GATE + "modle = 3", "no key 'gate.modle'"),
        (_GATE.replace("path = ", "pth = ", 1), "gate.source.directory.pth|gate.source.directory.path"),
        (_GATE.replace('"file"', '"fax"'), "gate.sinks.0"),
        (_GATE.replace("/out.jsonl", '/o", max_bytes = 3, keep = "x'), "gate.sinks.0.file.max_bytes"),
        (_GATE.replace('model = "ssd"', ""), "gate.model"),
        (_GATE.replace("gate", "Gate"), "Gate"),
        ("gate = 3", "gate"),
        ("gate", "no TOML"),
    ],
)
def test_the_offending_key_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Misuse, match=says):
        _loaded(tmp_path, text)


def test_streams_are_read_at_the_wanted_size_and_rate() -> None:
    """ffmpeg scales and drops frames itself, RTSP goes over TCP; GStreamer likewise."""
    rtsp = StreamSettings(kind="stream", url="rtsp://cam/1", width=320, height=240, frames_per_s=2.5)
    ffmpeg = stream_command(rtsp)
    gstreamer = stream_command(rtsp.model_copy(update={"program": "gstreamer"}))

    assert ffmpeg[ffmpeg.index("-rtsp_transport") + 1] == "tcp"
    assert ffmpeg[ffmpeg.index("-vf") + 1] == "fps=5/2,scale=320:240"
    assert "uri=rtspt://cam/1" in gstreamer
    assert "video/x-raw,format=RGB,width=320,height=240,framerate=5/2" in gstreamer


def test_a_files_name_becomes_a_uri_for_gstreamer() -> None:
    """Its uridecodebin takes nothing else; other schemes stay as they are."""
    for url, uri in (("/video/a b.mp4", "file:///video/a%20b.mp4"), ("http://cam/x", "http://cam/x")):
        command = stream_command(StreamSettings(kind="stream", url=url, program="gstreamer"))

        assert f"uri={uri}" in command


def test_passwords_are_not_told() -> None:
    """Keys of results and reasons name the stream without them."""
    assert without_password("rtsp://admin:s3cret@cam:554/1 failed") == "rtsp://cam:554/1 failed"
    assert without_password("rtsp://cam/user@host") == "rtsp://cam/user@host"
