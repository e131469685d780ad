"""`--processing FILE` of the commands that make a version: pre- and post-processing as the file describes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from regatta_protocol.processing import Processing

__all__ = ["processing_option", "read_described"]

processing_option = click.option(
    "--processing",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML or JSON: what the input is made of and what the outputs mean.",
)


def read_described(path: Path | None, mean: float | None, scale: float | None) -> Processing | None:
    """Return the processing that the file describes, or None without a file.

    Raises:
        Rejected: when the file is not understood.
        click.UsageError: when --mean or --scale is given beside it.
    """
    from regatta_protocol.processing_file import read_processing

    if path is None:
        return None
    if mean is not None or scale is not None:
        raise click.UsageError("--processing says mean and scale itself: leave --mean and --scale out")
    return read_processing(path)
