"""`python -m regatta_agent.serving SPEC.json`: run a serving worker."""

from __future__ import annotations

import os
import sys
import time

if __name__ == "__main__":
    started_ns = time.perf_counter_ns()
    from regatta_agent.serving.imports import keeping_out

    with keeping_out():
        from regatta_agent.serving.worker import main  # after the clock: numpy and the rest are part of the start

    code = main(sys.argv[1:], started_ns)
    sys.stderr.flush()
    # Not sys.exit: a thread that hangs in a runtime must not keep the process, and runtimes' destructors may crash.
    os._exit(code)
