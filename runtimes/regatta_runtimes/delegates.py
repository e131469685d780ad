"""The delegates that a board may offer, as data: what they are, how a board shows them, which library, how to get it.

One row a delegate; users add rows, or replace one, by TOML or JSON files of the same fields:

    [mynpu]
    what = "the NPU of my board"
    libraries = ["/opt/mynpu/libmynpu_delegate.so"]
    options = { cache = "1" }
    option_sets.turbo = { clock = "max" }

Sources: design notes on boards; each vendor's installation page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pydantic import BaseModel, ConfigDict, Field, RootModel, StringConstraints, ValidationError

from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.candidate import PART, Plugin
from regatta_runtimes.runtime import PLUGIN_RUNTIMES
from regatta_runtimes.sysfs import entries

__all__ = ["DELEGATES", "DelegateFacts", "find_plugin", "read_delegates"]

MAX_FILE_BYTES = 65_536
_RESERVED = ("cpu", "none", "ref", "xnnpack")  # what a runtime itself calls a delegate
# where a bare name is looked for, under the board's root: Debian's, Yocto's and a vendor's own places
_LIBRARY_FOLDERS = ("usr/lib", "usr/lib/*-linux-gnu*", "usr/lib64", "usr/local/lib", "lib", "lib/*-linux-gnu*", "lib64")

_Name = Annotated[str, StringConstraints(pattern=f"^{PART}$")]


class DelegateFacts(BaseModel):
    """`accelerators`: the names in BoardFacts.accelerators that it serves; none means that its library is sign enough.

    `libraries`: the first that exists is loaded; none means that a runtime brings the delegate itself, or that nothing
    drives it here. `runtimes`: those that can use it. `options`: what it is always told. `option_sets`: further options
    by name, each of which makes one more candidate (`gpu+f32`) beside the plain one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str = Field(min_length=1, max_length=200)
    accelerators: tuple[str, ...] = ()
    libraries: tuple[str, ...] = Field(default=(), max_length=16)
    options: dict[str, str] = Field(default_factory=dict, max_length=64)
    option_sets: dict[_Name, dict[str, str]] = Field(default_factory=dict, max_length=8)
    runtimes: tuple[str, ...] = Field(default=PLUGIN_RUNTIMES, min_length=1, max_length=8)
    compiled_only: bool = False  # takes only variants that require it by name
    install: str = Field(default="install its library", max_length=500)

    @property
    def can_be_driven(self) -> bool:
        """Whether there is something to load, or a runtime that brings the delegate itself."""
        return bool(self.libraries) or not set(self.runtimes) & set(PLUGIN_RUNTIMES)


class _DelegateFile(RootModel[dict[_Name, DelegateFacts]]):
    """What a user's file holds."""


DELEGATES: Mapping[str, DelegateFacts] = {
    "edgetpu": DelegateFacts(
        what="a Coral Edge TPU",
        accelerators=("coral-usb", "coral-pcie"),
        libraries=("libedgetpu.so.1",),
        compiled_only=True,
        install="plug in a Coral accelerator and install libedgetpu1-std",
    ),
    "gpu": DelegateFacts(
        what="a GPU",
        accelerators=("gpu", "jetson"),
        runtimes=("compiled",),
        option_sets={"f32": {"enforce_f32": "true"}},  # it computes in half precision by itself
        install="use a board with a Vulkan driver",
    ),
    "vx": DelegateFacts(
        what="an i.MX 8M Plus NPU",
        accelerators=("imx8mp-npu",),
        libraries=("libvx_delegate.so",),
        install="install libvx_delegate.so from NXP's BSP",
    ),
    "ethosu": DelegateFacts(
        what="an i.MX 93 Ethos-U NPU",
        accelerators=("ethosu",),
        libraries=("libethosu_delegate.so",),
        compiled_only=True,
        install="install libethosu_delegate.so from NXP's BSP",
    ),
    "teflon": DelegateFacts(
        what="an NPU that Mesa drives",
        accelerators=("rocket",),
        libraries=("libteflon.so",),
        install="install Mesa's libteflon.so",
    ),
    "qnn": DelegateFacts(
        what="a Qualcomm HTP",
        libraries=("libQnnTFLiteDelegate.so",),
        options={"backend_type": "htp"},
        install="install libQnnTFLiteDelegate.so of Qualcomm's SDK",
    ),
    "tidl": DelegateFacts(
        what="a TI C7x with TIDL",
        libraries=("libtidl_tfl_delegate.so",),
        compiled_only=True,
        install="install libtidl_tfl_delegate.so of TI's SDK, and name the artifacts_folder in a delegate file",
    ),
    "npu": DelegateFacts(
        what="an NPU of LiteRT's compiled models",
        accelerators=("accel", "intel-npu"),
        runtimes=("compiled",),
        install="install the vendor's LiteRT plug-in",
    ),
}


def read_delegates(files: Iterable[Path]) -> Mapping[str, DelegateFacts]:
    """Return DELEGATES with the rows of the files added; a later row replaces an earlier one of its name.

    Raises:
        Rejected: when a file cannot be read, is no table of delegates, or takes a name that runtimes use themselves.
    """
    rows = dict(DELEGATES)
    for file in files:
        try:
            text = read_bounded(file, MAX_FILE_BYTES).decode()
            table = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
            added = _DelegateFile.model_validate(table).root
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Rejected(f"{file} is no table of delegates: {where}: {first['msg']}") from err
        except (OSError, ValueError, RecursionError) as err:
            raise Rejected(f"the delegate file {file} cannot be read: {err}") from err
        taken = sorted(set(added) & set(_RESERVED))
        if taken:
            raise Rejected(f"{file} names a delegate {taken[0]!r}, which runtimes have built in: give it another name")
        rows |= added
    return rows


def find_plugin(
    name: str,
    board: BoardFacts | None = None,
    rows: Mapping[str, DelegateFacts] = DELEGATES,
    root: Path = Path("/"),
) -> Plugin | str:
    """Return what to load for a delegate, or why it cannot be loaded here and what would help.

    Args:
        board: checked for the delegate's accelerators; None looks for the library alone.
        root: where the board's file system lies.
    """
    facts = rows.get(name)
    if facts is None:
        unknown = f"it requires delegate {name!r}, which this agent does not know"
        return f"{unknown}: update the agent or describe it in a delegate file"
    here = f"it requires {facts.what}"
    if board is not None and facts.accelerators:
        found = [accelerator for accelerator in board.accelerators if accelerator in facts.accelerators]
        if not found:
            seen = ", ".join(board.accelerators) or "none"
            return f"{here} and none was found here (accelerators found: {seen}): {facts.install}"
        here = f"{', '.join(found)} is here"
    if not facts.can_be_driven:
        return f"{here}, but this agent has no backend for {name} yet: {facts.install}"
    if not facts.libraries:
        return Plugin(options=facts.options)
    library = next((path for path in (_library(text, root) for text in facts.libraries) if path is not None), None)
    if library is None:
        return f"{here}, but {' or '.join(facts.libraries)} was not found: {facts.install}"
    return Plugin(library=str(library), options=facts.options)


def _library(text: str, root: Path) -> Path | None:
    """Return where a library lies under the root: a path as it stands, a bare name in the usual folders."""
    if "/" in text:
        path = root / text.lstrip("/")
        return path if path.is_file() else None
    paths = (folder / text for pattern in _LIBRARY_FOLDERS for folder in entries(root, pattern))
    return next((path for path in paths if path.is_file()), None)
