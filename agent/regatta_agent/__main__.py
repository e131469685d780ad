"""`python -m regatta_agent`: the `regatta-agent` command, for where its console script is not on the path."""

import sys

from regatta_agent.cli import main

sys.exit(main())
