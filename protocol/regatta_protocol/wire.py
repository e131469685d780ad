"""The base of all that crosses the wire or lies in files: frozen, and tolerant of fields from a newer peer.

An old agent must survive a new server and the other way round, so unknown fields are accepted and kept when a
message is passed on. Configuration is the opposite (`extra="forbid"`) and does not derive from this. Values that a
serving worker needs as well are dataclasses (values.py).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Wire"]


class Wire(BaseModel):
    """A message or a part of one."""

    # Keys alone: the parser would keep each short text, such as every batch's id, up to 16,384 of them: 1.6 MB.
    model_config = ConfigDict(
        frozen=True, extra="allow", allow_inf_nan=False, ser_json_inf_nan="null", cache_strings="keys"
    )
