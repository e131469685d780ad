"""Which candidate is placed and why, from figures alone. Pure: nothing here starts, opens or times anything."""
