"""`python -m regatta_agent.process.compiler FOLDER`: compiles the lean bytecode (bytecode.py) of this installation.

Importing is what compiles, each time in a process of its own: of libraries just what the daemon, the workers and each
runtime import; of Regatta all that they may. What is there under the installation's name is whole, for it gets that
name last. What was compiled for another installation is deleted.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from regatta_agent.process.bytecode import flags_for, installation
from regatta_protocol.durable import sync_folder
from regatta_protocol.errors import Retryable
from regatta_runtimes.runtime import RUNTIMES

__all__ = ["compile_ahead", "main"]

_LIMIT_S = 80.0  # `regatta-agent install` waits for 90
_OWN_NAME = re.compile(r"[0-9a-f]{8}(\.new)?")
_OURS = ("regatta_protocol", "regatta_runtimes", "regatta_provisioning", "regatta_agent")
_DAEMON = "import regatta_agent.bootstrap, regatta_agent.config, regatta_protocol.mqtt, encodings.idna"
_WORKER = "import regatta_agent.serving.worker, numpy.fft, numpy.ma, numpy.random"
_RUNTIME = "from regatta_runtimes.worker.session import load_backend; load_backend({!r}).version()"


def compile_ahead(folder: Path, limit_s: float = _LIMIT_S) -> Path:
    """Compile into `folder`, in place of what it holds, and return where the bytecode of this installation lies.

    Raises:
        Retryable: when that takes longer, or fails; the message says how.
        OSError: when the folder cannot be written.
    """
    deadline = time.monotonic() + limit_s
    prefix = folder / installation()
    making = prefix.with_suffix(".new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for name in _OURS:
        _python(making, f"import compileall, {name} as p; compileall.compile_dir(p.__path__[0], quiet=2)", deadline)
    for code in (_DAEMON, _WORKER):
        _python(making, code, deadline)
    for runtime in RUNTIMES:
        with contextlib.suppress(Retryable):  # not installed here, or broken: the race says so
            _python(making, _RUNTIME.format(runtime), deadline)
    for other in folder.iterdir():
        if _OWN_NAME.fullmatch(other.name) and other != making:
            shutil.rmtree(other)
    os.sync()  # a power cut soon after an installation must not leave a name that promises what was never written
    making.rename(prefix)
    sync_folder(folder)
    return prefix


def _python(prefix: Path, code: str, deadline: float) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    try:
        done = subprocess.run(
            [sys.executable, *flags_for(prefix), "-c", code],
            stdin=subprocess.DEVNULL,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(0.0, deadline - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise Retryable(f"compiling took too long: {code}") from err
    if done.returncode != 0:
        raise Retryable(f"this could not be compiled: {code}: {done.stderr.strip()[-500:]}")


def main(arguments: Sequence[str]) -> int:
    """Compile into the folder that the only argument names; return the exit code."""
    (folder,) = arguments
    os.umask(0o022)  # root's may be strict, and the service's user must read what is made
    try:
        prefix = compile_ahead(Path(folder))
    except (Retryable, OSError) as err:
        sys.stderr.write(f"error: {err}\n")
        return Retryable.exit_code
    sys.stdout.write(f"{prefix}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
