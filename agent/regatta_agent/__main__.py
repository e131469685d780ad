"""`python -m regatta_agent`: the `regatta-agent` command, for where its console script is not on the path."""

from regatta_agent.cli import main

main()
