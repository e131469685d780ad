"""The table of delegates with what users add to it, and what to load for one of them on a board.

Rows come from, each replacing an earlier one of its name: the table that ships (delegate_table.py); installed Python
distributions, by entry points of the group `regatta.delegates`; files in /etc/regatta/delegates.d; files named by the
caller. An entry point is a table of rows, or a function without arguments that returns one. A file is TOML or JSON:

    [mynpu]
    what = "the NPU of my board"
    accelerators = ["mynpu"]
    signs.mynpu = { paths = ["dev/mynpu0"] }
    libraries = ["/opt/mynpu/libmynpu_delegate.so"]
    options = { cache = "1" }
    option_sets.turbo = { clock = "max" }

A caller's file that is wrong is an error; any other source that is wrong is told and left out, so that one broken
package does not end a board's races.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pydantic import RootModel, StringConstraints, ValidationError

from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.values import Plugin
from regatta_runtimes.board.accelerators import Signs
from regatta_runtimes.board.delegate_table import DELEGATES, DelegateFacts
from regatta_runtimes.board.libraries import find_library
from regatta_runtimes.candidate import PART
from regatta_runtimes.sysfs import entries

__all__ = ["DELEGATES", "GROUP", "DelegateFacts", "find_plugin", "known_signs", "read_delegates"]

logger = logging.getLogger(__name__)

GROUP = "regatta.delegates"  # the entry points'
FOLDER = "etc/regatta/delegates.d"
MAX_FILE_BYTES = 65_536
_RESERVED = ("cpu", "none", "ref", "xnnpack")  # what a runtime itself calls a delegate

_Name = Annotated[str, StringConstraints(pattern=f"^{PART}$")]


class _Table(RootModel[dict[_Name, DelegateFacts]]):
    """What a file or an entry point holds."""


def _warn(text: str) -> None:
    logger.warning("event=delegates_left_out reason=%s", text)


def read_delegates(
    files: Iterable[Path] = (), root: Path = Path("/"), tell: Callable[[str], None] = _warn
) -> Mapping[str, DelegateFacts]:
    """Return DELEGATES with the rows that users added; a later row replaces an earlier one of its name.

    Args:
        files: tables that the caller names.
        root: where the board's file system lies.
        tell: told about each entry point or file of the folder that is left out, and why.

    Raises:
        Rejected: when one of `files` cannot be read, is no table of delegates, or takes a name that runtimes use.
    """
    rows = dict(DELEGATES)
    sources: list[Callable[[], dict[str, DelegateFacts]]] = [
        *(lambda point=point: _from_entry_point(point) for point in entry_points(group=GROUP)),
        *(
            lambda file=file: _from_file(file)
            for file in entries(root / FOLDER, "*")
            if file.suffix in (".toml", ".json")
        ),
    ]
    for source in sources:
        try:
            rows |= source()
        except Rejected as err:
            tell(str(err))
    for file in files:
        rows |= _from_file(file)
    return rows


def known_signs(rows: Mapping[str, DelegateFacts]) -> dict[str, Signs]:
    """Return the signs of accelerators that the rows bring along."""
    return {name: signs for facts in rows.values() for name, signs in facts.signs.items()}


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
    here, first = f"it requires {facts.what}", None
    if board is not None and facts.accelerators:
        found = [accelerator for accelerator in board.accelerators if accelerator in facts.accelerators]
        if not found:
            seen = ", ".join(board.accelerators) or "none"
            steps = ", then ".join(step for step in (facts.hardware, facts.install) if step)
            return f"{here} and none was found here (accelerators found: {seen}): {steps}"
        here, first = f"{', '.join(found)} is here", found[0]
    if not facts.can_be_driven:
        return f"{here}, but this agent has no backend for {name} yet: {facts.hint(first)}"
    if not facts.libraries:
        return Plugin(options=facts.options)
    library = next((path for path in (find_library(text, root) for text in facts.libraries) if path is not None), None)
    if library is None:
        return f"{here}, but {' or '.join(facts.libraries)} was not found: {facts.hint(first)}"
    return Plugin(library=str(library), options=facts.options)


def _from_entry_point(point: EntryPoint) -> dict[str, DelegateFacts]:
    """Return the rows of an installed distribution.

    Raises:
        Rejected: when its code fails, or it gives no table of delegates.
    """
    source = f"the entry point {point.name!r} ({point.value}) of the group {GROUP}"
    try:
        table = point.load()
        return _checked(table() if callable(table) else table, source)
    except Rejected:
        raise
    except (Exception, SystemExit) as err:  # plug-in code
        logger.exception("event=entry_point_failed name=%s value=%s", point.name, point.value)
        raise Rejected(f"{source} fails: {type(err).__name__}: {err}") from err


def _from_file(file: Path) -> dict[str, DelegateFacts]:
    """Return the rows of a file.

    Raises:
        Rejected: when it cannot be read or is no table of delegates.
    """
    try:
        text = read_bounded(file, MAX_FILE_BYTES).decode()
        table = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as err:
        raise Rejected(f"the delegate file {file} cannot be read: {err}") from err
    return _checked(table, str(file))


def _checked(table: object, source: str) -> dict[str, DelegateFacts]:
    """Return a table's rows.

    Raises:
        Rejected: when it is no table of delegates, or takes a name that runtimes use themselves.
    """
    try:
        rows = _Table.model_validate(table).root
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Rejected(f"{source} is no table of delegates: {where}: {first['msg']}") from err
    taken = sorted(set(rows) & set(_RESERVED))
    if taken:
        raise Rejected(f"{source} names a delegate {taken[0]!r}, which runtimes have built in: give it another name")
    return rows
