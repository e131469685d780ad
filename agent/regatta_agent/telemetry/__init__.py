"""What was measured on its way to the fleet: stored, thinned, put together, sent until acknowledged."""
