"""`python -m regatta_agent.serving SPEC.json`: run a serving worker."""

from __future__ import annotations

import os
import sys

from regatta_agent.serving.worker import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    # Not sys.exit: a thread that hangs in a runtime must not keep the process, and runtimes' destructors may crash.
    os._exit(code)
