"""The README's commands run as they stand there: a promise that cannot rot."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polling import wait_until
from shared_data import REPOSITORY, shared_file

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

# Commands that stay in the foreground: the README says to leave them running.
_SERVICES = ("regatta up", "regatta-agent run")


def readme_commands(section: str) -> list[str]:
    """Return each command line of the shell blocks under a heading of the README."""
    text = (REPOSITORY / "README.md").read_text()
    body = text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", body, re.S) for line in block.splitlines() if line.strip()]


class Shell:
    """Runs commands as a user would, in one folder; ends what it left running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services: list[subprocess.Popen[bytes]] = []
        # The console scripts of the environment that runs the tests.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "REGATTA_HOME": str(folder / "fleet")}

    def run(self, command: str, timeout_s: float = 120) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{command}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, command: str) -> None:
        log = (self.folder / f"service-{len(self.services)}.log").open("wb")
        with log:
            self.services.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {command}"],
                    cwd=self.folder,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                )
            )

    def stop(self) -> None:
        for service in reversed(self.services):
            service.send_signal(signal.SIGTERM)
            try:
                service.wait(20)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait(10)


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    # Unix socket paths end at 107 bytes, so the folder's own path must be short.
    folder = tmp_path_factory.mktemp("r")
    shell = Shell(folder)
    yield shell
    shell.stop()


def test_own_model_step_by_step(shell: Shell) -> None:
    """The README's way with the user's own model ends with the Egyptian cat."""
    for name in ("mobilenet_v2_1.0_224_quant.tflite", "imagenet_labels.txt", "cat.bmp"):
        shutil.copy(shared_file(f"coral/{name}"), shell.folder)
    for name in ("kws_float32.tflite", "kws01_dev.npz"):
        shutil.copy(shared_file(f"mlperf_tiny/{name}"), shell.folder)
    answers: dict[str, str] = {}

    for command in readme_commands("Your own model, step by step"):
        if command.startswith(_SERVICES):
            shell.serve(command)
            if command.startswith("regatta up"):
                wait_until(lambda: (shell.folder / "fleet" / "server.json").exists(), 30, "the server is ready")
        else:
            answers[command] = shell.run(command)

    [infer] = [text for command, text in answers.items() if " infer " in command]
    assert "Egyptian cat" in infer.splitlines()[0] or "Egyptian cat" in infer.splitlines()[1], infer
    [why] = [text for command, text in answers.items() if " why " in command]
    assert "litert/" in why
    assert "kws:1" in shell.run("regatta model show kws:1")
