"""The processes that open and time candidates, their owner's side and their own, and what each says to the other."""
