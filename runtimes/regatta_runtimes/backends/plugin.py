"""External delegates: a library with `tflite_plugin_create_delegate`, loaded alike by LiteRT and tflite-runtime.

Only for worker processes: a library may crash, abort or hang while it loads, and is then told apart by nursery.py.
"""

from __future__ import annotations

from typing import Any

from regatta_protocol.values import Plugin
from regatta_runtimes.board.delegates import find_plugin, read_delegates
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import CreateFailed, one_line

__all__ = ["load_plugin"]


def load_plugin(vendor: Any, candidate: Candidate) -> Any:  # noqa: ANN401 - untyped vendor
    """Return the vendor's delegate object for the candidate: its own plug-in, or the one of its name on this board.

    Raises:
        CreateFailed: when the delegate is not known, its library is absent or damaged, or it refuses to be created.
    """
    plugin = candidate.plugin or find_plugin(candidate.delegate, rows=read_delegates())
    if isinstance(plugin, Plugin) and plugin.library is None:
        plugin = f"{candidate.delegate} is no library that {candidate.runtime} could load"
    if isinstance(plugin, str):
        raise CreateFailed(f"{candidate.id}: {plugin}")
    try:
        return vendor.load_delegate(plugin.library, plugin.options)
    except (OSError, AttributeError, ValueError, RuntimeError) as err:
        raise CreateFailed(f"{candidate.id}: delegate {plugin.library} cannot be created: {one_line(err)}") from err
