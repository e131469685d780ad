"""What a pipeline is: a table of `/etc/regatta/pipelines.toml` by its name. Unknown keys are errors, named in full."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.ids import ModelNameField

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "DEFAULT_PIPELINES_PATH",
    "BrokerSettings",
    "CameraSettings",
    "DirectorySettings",
    "FileSettings",
    "HttpSettings",
    "MqttInSettings",
    "MqttOutSettings",
    "Pipeline",
    "StreamSettings",
    "WhenFull",
    "load_pipelines",
]

DEFAULT_PIPELINES_PATH = Path("/etc/regatta/pipelines.toml")
_MAX_BYTES = 256 * 1024

WhenFull = Literal["drop-oldest", "drop-newest", "block"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BrokerSettings(_Settings):
    """A broker, of the fleet or of somebody else; without `ca` the connection is plain."""

    host: str
    port: int = Field(default=1883, ge=1, le=65_535)
    client_id: str | None = Field(default=None, max_length=64)  # None: made of the pipeline's name
    user_name: str | None = None
    password_file: Path | None = None  # its first line
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class CameraSettings(_Settings):
    """A camera of V4L2, by OpenCV (extra `camera`)."""

    kind: Literal["camera"]
    device: str = "/dev/video0"
    width: int = Field(default=640, ge=1, le=8192)
    height: int = Field(default=480, ge=1, le=8192)
    frames_per_s: float = Field(default=5.0, gt=0, le=240)


class StreamSettings(_Settings):
    """Anything that ffmpeg (or GStreamer) opens: rtsp://…, a file, a test pattern; read as frames of one size."""

    kind: Literal["stream"]
    url: str
    program: Literal["ffmpeg", "gstreamer"] = "ffmpeg"
    options: tuple[str, ...] = Field(default=(), max_length=64)  # of ffmpeg, before its input
    width: int = Field(default=640, ge=4, le=8192, multiple_of=4)  # GStreamer pads rows to 4 bytes
    height: int = Field(default=480, ge=1, le=8192)
    frames_per_s: float = Field(default=5.0, gt=0, le=240)
    restart: bool = True  # when it ends; false: the pipeline ends with it


class DirectorySettings(_Settings):
    """New files of a folder: pictures, sounds or .npy samples."""

    kind: Literal["directory"]
    path: Path
    pattern: str = "*"
    period_s: float = Field(default=0.5, gt=0, le=3600)  # between looks; a file counts when it did not change in one
    existing: bool = True  # files that are there at the start count, too
    after: Literal["keep", "remove"] = "keep"  # remove: once every sink has its result


class MqttInSettings(BrokerSettings):
    """Messages of a topic, each a picture's or a sound's file."""

    kind: Literal["mqtt"]
    topic: str = Field(min_length=1, max_length=1024)


class MqttOutSettings(BrokerSettings):
    """Results to a topic as JSON."""

    kind: Literal["mqtt"]
    topic: str = Field(min_length=1, max_length=1024, pattern=r"^[^#+]*$")
    qos: Literal[0, 1] = 1
    retain: bool = False


class HttpSettings(_Settings):
    """Results to a URL, each by a POST of JSON."""

    kind: Literal["http"]
    url: str = Field(pattern=r"^https?://")
    token_file: Path | None = None  # its first line is sent as a bearer token
    timeout_s: float = Field(default=5.0, gt=0, le=300)
    tries: int = Field(default=3, ge=1, le=20)


class FileSettings(_Settings):
    """Results to a file, one a line; at `max_bytes` it becomes FILE.1, FILE.1 becomes FILE.2, and so on."""

    kind: Literal["file"]
    path: Path
    max_bytes: int = Field(default=16 * 1024 * 1024, ge=4096)
    keep: int = Field(default=3, ge=0, le=100)


Source = Annotated[CameraSettings | StreamSettings | DirectorySettings | MqttInSettings, Field(discriminator="kind")]
Sink = Annotated[MqttOutSettings | HttpSettings | FileSettings, Field(discriminator="kind")]


class Pipeline(_Settings):
    """One pipeline."""

    model: ModelNameField
    source: Source
    sinks: tuple[Sink, ...] = Field(min_length=1, max_length=16)
    top: int = Field(default=0, ge=0, le=1000)  # classes or objects; 0: as the model's manifest says
    queue_length: int = Field(default=2, ge=1, le=1024)  # frames that wait
    when_full: WhenFull | None = None  # None: block for a directory, drop-oldest for what is live

    @property
    def policy(self) -> WhenFull:
        """What happens to frames that find no room."""
        return self.when_full or ("block" if self.source.kind == "directory" else "drop-oldest")


_PIPELINES = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")], Pipeline])


def load_pipelines(path: Path) -> dict[str, Pipeline]:
    """Return the pipelines of the file by their names.

    Raises:
        Misuse: when it cannot be read, is no TOML, or a key is unknown or wrong; the text names file and key.
    """
    try:
        document = tomllib.loads(read_bounded(path, _MAX_BYTES).decode())
    except OSError as err:
        raise Misuse(f"{path} cannot be read: {err.strerror}: docs/pipelines.md shows one") from err
    except (Rejected, ValueError) as err:
        raise Misuse(f"{path} is no TOML: {err}") from err
    try:
        return _PIPELINES.validate_python(document)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise Misuse(f"{path}: there is no key {key!r}: docs/pipelines.md lists them") from err
        raise Misuse(f"{path}: key {key!r}: {first['msg']}") from err
