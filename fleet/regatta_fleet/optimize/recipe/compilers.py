"""Compilers of accelerators, run as the programs that the user has installed: none is shipped or fetched.

Each reads a quantized .tflite and writes another one, which only runs where the accelerator is.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from regatta_fleet.optimize.recipe.models import Accelerator, CompileStep
from regatta_protocol.errors import Rejected

__all__ = ["COMPILERS", "Compiler", "compile_model"]

_MAX_WORDS = 400  # of what a compiler says at its end


@dataclass(frozen=True)
class Compiler:
    """How a compiler is called; `{model}` and `{folder}` stand for files, and its output is a .tflite in the folder."""

    command: tuple[str, ...]
    delegate: str  # that runs what it writes
    how: str  # to get it


COMPILERS: dict[Accelerator, Compiler] = {
    "edgetpu": Compiler(
        ("edgetpu_compiler", "--out_dir", "{folder}", "{model}"),
        "edgetpu",
        "Debian package edgetpu-compiler of https://packages.cloud.google.com/apt, x86-64 only",
    ),
    "vela": Compiler(
        ("vela", "{model}", "--output-dir", "{folder}", "--accelerator-config", "ethos-u55-128"),
        "ethosu",
        "pip install ethos-u-vela",
    ),
    "tidl": Compiler(
        (),
        "tidl",
        "TI's edgeai-tidl-tools has no single program: give `command` with {model} and {output}",
    ),
}


def compile_model(step: CompileStep, model: Path, output: Path, folder: Path, timeout_s: float) -> tuple[str, ...]:
    """Write what the compiler makes of the model to `output`; returns what was done, in words.

    Args:
        folder: empty, for whatever the compiler writes.

    Raises:
        Rejected: when the compiler is not here, fails, hangs, or writes no .tflite.
    """
    compiler = COMPILERS[step.accelerator]
    command = step.command or compiler.command
    if not command:
        raise Rejected(f"no compiler for {step.accelerator} is known by name: {compiler.how}")
    program = shutil.which(command[0])
    if program is None:
        hint = compiler.how if step.command is None else "install it, or name another `command`"
        raise Rejected(f"{command[0]}, which compiles for {step.accelerator}, is not installed here: {hint}")
    places = {"{model}": str(model), "{output}": str(output), "{folder}": str(folder)}
    arguments = [_filled(part, places) for part in command[1:]]
    try:
        done = subprocess.run(
            [program, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise Rejected(f"{command[0]} took over {timeout_s:.0f} s and was ended") from err
    except OSError as err:
        raise Rejected(f"{command[0]} cannot be started: {err}") from err
    said = " ".join(done.stdout.decode(errors="replace").split())[-_MAX_WORDS:]
    if done.returncode != 0:
        raise Rejected(f"{command[0]} ended with status {done.returncode}: {said or 'it said nothing'}")
    if not output.is_file():
        made = sorted(folder.glob("*.tflite"))
        if len(made) != 1:
            raise Rejected(f"{command[0]} wrote {len(made)} .tflite files where one was expected: {said}")
        shutil.copyfile(made[0], output)
    return (f"compiled for {step.accelerator} by {command[0]}",)


def _filled(part: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        part = part.replace(name, path)
    return part
