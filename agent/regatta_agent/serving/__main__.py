"""`python -m regatta_agent.serving SPEC.json [--give-way]`: run a serving worker; see giving_way.py."""

from __future__ import annotations

import os
import sys
import time

if __name__ == "__main__":
    started_ns = time.perf_counter_ns()
    from regatta_agent.serving import giving_way
    from regatta_agent.serving.imports import keeping_out

    arguments = sys.argv[1:]
    if giving_way.OPTION in arguments:
        arguments.remove(giving_way.OPTION)
        giving_way.begin()
    with keeping_out():
        from regatta_agent.serving.worker import main  # after the clock: numpy and the rest are part of the start

    code = main(arguments, started_ns)
    sys.stderr.flush()
    # Not sys.exit: a thread that hangs in a runtime must not keep the process, and runtimes' destructors may crash.
    os._exit(code)
