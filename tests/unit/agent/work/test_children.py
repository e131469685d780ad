"""Real child processes: bounded, read to the end, and ended for sure; and the words to systemd."""

from __future__ import annotations

import errno
import os
import platform
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.status import StateLock, is_running
from regatta_agent.work import children
from regatta_agent.work.children import ProcessLauncher
from regatta_protocol.errors import Misuse


@pytest.fixture
def inbox() -> queue.Queue[Event]:
    return queue.Queue(100)


@pytest.fixture
def launcher(inbox: queue.Queue[Event]) -> Iterator[ProcessLauncher]:
    made = ProcessLauncher(inbox)
    yield made
    made.close()


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def until_end(inbox: queue.Queue[Event]) -> tuple[list[bytes], ChildEnded]:
    lines: list[bytes] = []
    while True:
        event = inbox.get(timeout=20)
        if isinstance(event, ChildEnded):
            return lines, event
        assert isinstance(event, ChildLine)
        lines.append(event.line)


def test_lines_and_the_end_come_in_order(launcher: ProcessLauncher, inbox: queue.Queue[Event]) -> None:
    """Standard output by lines, also a last one without its end; then the status with the last words."""
    code = "import sys; data = sys.stdin.read(); print(data); print('b', end=''); sys.exit('too bad')"
    launcher.launch("one", python(code), b"hello")

    lines, ended = until_end(inbox)
    assert lines == [b"hello", b"b"]
    assert ended.describe() == "exit status 1: too bad"


def test_a_child_goes_before_the_agent_when_memory_runs_out(
    launcher: ProcessLauncher, inbox: queue.Queue[Event]
) -> None:
    """The kernel ends the process of the highest value first."""
    own = Path("/proc/self/oom_score_adj")
    if not own.exists():
        pytest.skip("there is no /proc here")
    child = launcher.launch("one", python("import sys; sys.stdin.read()"), None)

    value = int(Path(f"/proc/{child.pid}/oom_score_adj").read_text())
    child.finish()
    until_end(inbox)

    assert value == 500
    assert value > int(own.read_text())


def test_finish_is_the_end_of_standard_input(launcher: ProcessLauncher, inbox: queue.Queue[Event]) -> None:
    """A worker that waits for its input ends by itself."""
    child = launcher.launch("two", python("import sys; sys.stdin.read(); print('drained')"), None)
    child.finish()

    assert until_end(inbox)[0] == [b"drained"]


def test_kill_ends_the_whole_group(launcher: ProcessLauncher, inbox: queue.Queue[Event]) -> None:
    """A grandchild that holds the pipe open does not survive."""
    code = "import subprocess; subprocess.Popen(['sleep', '60']); print('up', flush=True); input()"
    child = launcher.launch("three", python(code), None)
    assert inbox.get(timeout=20) == ChildLine("three", b"up")
    child.kill()

    assert until_end(inbox)[1].status == -9  # well before the sleep of a minute is over


def test_a_line_without_end_is_no_memory_leak(
    launcher: ProcessLauncher, inbox: queue.Queue[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that floods one line is killed."""
    monkeypatch.setattr(children, "MAX_LINE_BYTES", 100_000)
    launcher.launch("four", python("import sys\nwhile True: sys.stdout.write('x' * 9999)"), None)

    assert until_end(inbox)[1].status == -9


def test_a_state_folder_has_one_agent(tmp_path: Path) -> None:
    """A second one is refused with words, and the lock shows who runs."""
    lock = StateLock(tmp_path)
    assert not is_running(tmp_path)
    lock.take()
    assert is_running(tmp_path)

    with pytest.raises(Misuse, match="another regatta-agent"):
        StateLock(tmp_path).take()
    lock.release()
    assert not is_running(tmp_path)


def test_a_child_that_cannot_be_listened_to_still_ends(
    launcher: ProcessLauncher, inbox: queue.Queue[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for its end would otherwise wait for ever; the child is killed, and the end says why."""
    monkeypatch.setattr("selectors.PollSelector", mock.Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
    launcher.launch("deaf", [sys.executable, "-c", "import time; time.sleep(60)"], None)

    ended = inbox.get(timeout=20)
    assert isinstance(ended, ChildEnded)
    assert (ended.child, ended.status) == ("deaf", -9)
    assert "Too many open files" in ended.describe()


@pytest.mark.parametrize(
    "start",
    [mock.Mock(side_effect=RuntimeError("can't start new thread")), mock.Mock()],
    ids=["none left", "dead before it began"],
)
def test_a_child_without_a_thread_to_listen_is_not_started(
    launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch, start: mock.Mock
) -> None:
    """A board at its limit of threads or memory says so as the system calls do, and nothing is left running."""
    started: list[int] = []
    real = subprocess.Popen

    def noted(*given: object, **named: object) -> object:
        popen = real(*given, **named)  # type: ignore[call-overload]
        started.append(popen.pid)
        return popen

    monkeypatch.setattr("subprocess.Popen", noted)
    monkeypatch.setattr("_thread.start_new_thread", start)
    monkeypatch.setattr("regatta_protocol.threads._BEGIN_S", 0.01)

    with pytest.raises(OSError, match="no thread could be started for mute") as caught:
        launcher.launch("mute", [sys.executable, "-c", "import time; time.sleep(60)"], None)
    assert caught.value.errno == errno.EAGAIN
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_the_end_of_a_child_is_told_when_there_is_memory_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Want of memory at the very moment loses lines, and never the end: something waits for that."""
    full = [2]

    class Starved(queue.Queue[Event]):
        def put(self, item: Event, block: bool = True, timeout: float | None = None) -> None:
            if full[0] > 0:
                full[0] -= 1
                raise MemoryError
            super().put(item, block, timeout)

    monkeypatch.setattr(children, "_NO_MEMORY_S", 0.0)
    inbox = Starved(10)
    launcher = ProcessLauncher(inbox)
    try:
        launcher.launch("one", python("print('lost'); import sys; sys.stdin.read()"), None)
        ended = inbox.get(timeout=20)
    finally:
        launcher.close()

    assert isinstance(ended, ChildEnded)
    assert (ended.child, ended.status) == ("one", -9)
    assert "MemoryError" in ended.describe()


@pytest.mark.parametrize(
    ("status", "errors", "lack"),
    [
        (-9, "", "memory"),
        (1, "Traceback …\nMemoryError", "memory"),
        (127, "python: error while loading shared libraries: libz.so.1: failed to map segment", "memory"),
        (1, "OSError: [Errno 24] Too many open files: 'trust'", "descriptors"),
        (1, "ValueError: no", None),
        (-11, "", None),
    ],
)
def test_an_end_tells_what_the_board_lacked(status: int, errors: str, lack: str | None) -> None:
    """In the words of the kernel, the loader and Python; a crash is none of them."""
    assert ChildEnded("one", status, errors).lack == lack


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's malloc how far its heap reaches")
def test_what_a_child_says_does_not_have_the_heap_creep() -> None:
    """Lines that come one by one, as a worker's windows do, are read where the ones before them were."""
    risen = subprocess.run(
        [sys.executable, "-c", _CREEPING], env={**os.environ, "MALLOC_ARENA_MAX": "1"}, capture_output=True, timeout=60,
        check=True, text=True,
    )  # fmt: skip

    assert int(risen.stdout) < 20_000, "with room for 64 KiB at each read it was 48,000"


_CREEPING = """
import ctypes, queue, sys
from regatta_agent.events import ChildEnded
from regatta_agent.work.children import ProcessLauncher

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Info = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info

def reached():
    info = mallinfo2()
    return info.arena - info.keepcost

child = "import time\\nfor _ in range(300): print('x' * 560, flush=True); time.sleep(0.004)"
inbox = queue.Queue(1000)
ProcessLauncher(inbox).launch("one", [sys.executable, "-S", "-c", child], None)
reaches = []
while not isinstance(inbox.get(timeout=20), ChildEnded):
    reaches.append(reached())
print(max(reaches[50:]) - reaches[50])
"""
