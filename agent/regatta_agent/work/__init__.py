"""What goes on besides serving, as jobs in child processes: fetching, verifying, racing, batches, renewing."""
