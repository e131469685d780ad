"""How Hypothesis plays here: the same examples in every run, and no example fails for being slow on a busy machine.

`./run test --hypothesis-profile default` looks for new ones; what it finds becomes an `@example` or a test of its own.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
