"""Devices let in and heard, answered and sent what they ask for, and cut off when they are revoked."""
