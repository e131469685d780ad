"""What devices shall run: rollouts carried out, policies and windows, and all that is said to devices."""
