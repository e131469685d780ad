"""`python -m regatta_fleet`: the `regatta` command, for where its console script is not on the path."""

import sys

from regatta_fleet.cli import main

sys.exit(main())
