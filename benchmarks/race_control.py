"""A control process for bench_race.py: starts races as the agent does, and tells what they cost itself.

It imports what the agent's daemon imports. For each line on stdin, `SPEC.json OUTPUT.json`, it starts a race through
the agent's own launcher and answers with a line of JSON: how long it took, how it ended, and this process's
proportional set size before and after.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from pathlib import Path

import regatta_agent.bootstrap  # noqa: F401 - for its memory: what the daemon holds
from regatta_agent.events import ChildEnded, Event
from regatta_agent.work.children import ProcessLauncher

_RACE_TIMEOUT_S = 300.0


def pss_bytes() -> int | None:
    """Return this process's proportional set size, or None where the kernel does not tell."""
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), None)


def main() -> None:
    """Race until stdin ends."""
    inbox: queue.Queue[Event] = queue.Queue(10_000)
    launcher = ProcessLauncher(inbox)
    for number, line in enumerate(sys.stdin):
        spec, output = line.split()
        name, before, begun = f"race-{number}", pss_bytes(), time.monotonic()
        launcher.launch(name, [sys.executable, "-m", "regatta_runtimes.race.run", spec, "--output", output], None)
        while not isinstance(event := inbox.get(timeout=_RACE_TIMEOUT_S), ChildEnded):
            pass
        answer = {
            "race_s": time.monotonic() - begun,
            "status": event.status,
            "said": event.describe(),
            "pss_before_bytes": before,
            "pss_after_bytes": pss_bytes(),
        }
        print(json.dumps(answer), flush=True)
    launcher.close()


if __name__ == "__main__":
    main()
