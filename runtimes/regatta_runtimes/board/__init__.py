"""What the board is and offers: its accelerators, drivers, delegates and heat, read from files under a root."""
