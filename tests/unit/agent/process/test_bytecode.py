"""Lean bytecode: compiled whole, found by its own installation only, and gone without where it is missing or old."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from regatta_agent.process.bytecode import FOLDER_VARIABLE, inherited_flags, installation, start_lean
from regatta_agent.process.compiler import compile_ahead, main
from regatta_protocol.errors import Retryable

_PROGRAM = """
import json, sys
from regatta_agent.process.bytecode import inherited_flags, start_lean
start_lean()
from regatta_agent import bootstrap, config
from regatta_protocol import mqtt
import encodings.idna
if "worker" in sys.argv:
    from regatta_agent.serving.imports import keeping_out
    with keeping_out():
        import regatta_agent.serving.worker
    import ai_edge_litert.interpreter
missing = [
    name
    for name, module in sys.modules.items()
    if getattr(module, "__cached__", None) and not __import__("os").path.exists(module.__cached__)
]
try:
    config.load_config(3, 4)
except Exception as err:
    line = err.__traceback__.tb_next.tb_lineno
print(json.dumps({
    "argv": sys.argv, "optimize": sys.flags.optimize, "missing": missing, "line": line,
    "documented": bootstrap.run_agent.__doc__ is not None, "children": inherited_flags(),
}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytecode")
    (folder / "00c0ffee").mkdir()  # of an installation that was
    compile_ahead(folder, limit_s=150.0)
    return folder


def _run(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Return what the program says of itself, started where REGATTA_BYTECODE names the folder."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        env={**os.environ, FOLDER_VARIABLE: str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told, done.stderr


@pytest.mark.parametrize("of", ["daemon", "worker"])
def test_the_program_runs_lean_and_nothing_of_it_is_compiled_at_its_start(compiled: Path, of: str) -> None:
    """No docstrings, but lines in tracebacks, its own arguments, and children that run so too."""
    told, _ = _run(compiled, of)
    plain, _ = _run(compiled / "none", of)

    assert told["argv"] == ["-c", of]
    assert (told["optimize"], told["documented"], told["missing"]) == (2, False, [])
    assert told["children"][-1] == f"pycache_prefix={compiled / installation()}"
    assert told["line"] == plain["line"] > 1


def test_only_this_installations_bytecode_is_kept(compiled: Path) -> None:
    assert [path.name for path in compiled.iterdir()] == [installation()]


def test_bytecode_of_another_installation_is_left_alone(tmp_path: Path) -> None:
    """After an upgrade, or with nothing compiled, the program runs as pip compiled it, and says so."""
    (tmp_path / "00c0ffee").mkdir()
    told, log = _run(tmp_path)

    assert (told["optimize"], told["documented"], told["children"]) == (0, True, [])
    assert "event=not_lean" in log and "regatta-agent install" in log


def test_a_source_that_changed_is_compiled_in_memory(compiled: Path, tmp_path: Path) -> None:
    """One file newer than its bytecode costs its compilation, and nothing else: Python compares the two."""
    source = tmp_path / "changing.py"
    prefix = compiled / installation()
    argv = [sys.executable, "-OO", "-X", f"pycache_prefix={prefix}", "-c", "import changing; print(changing.value)"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    told = []
    for value in (1, 22):
        source.write_text(f"value = {value}\n")
        told.append(subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60))

    assert [done.stdout for done in told] == ["1\n", "22\n"], told


def test_what_takes_too_long_leaves_nothing_to_be_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Retryable, match="too long"):
        compile_ahead(tmp_path, limit_s=0.0)
    assert not (tmp_path / installation()).exists()

    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file")]) == Retryable.exit_code
    assert "file" in capsys.readouterr().err


def test_without_the_variable_nothing_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """This very process would be replaced otherwise."""
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    start_lean()

    assert inherited_flags() == ()
