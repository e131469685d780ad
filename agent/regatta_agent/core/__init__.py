"""The decisions of the agent: pure, with time and randomness as arguments."""
