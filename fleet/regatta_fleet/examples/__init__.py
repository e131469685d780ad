"""Models that ship with Regatta, each with the recipe that rebuilds it."""
