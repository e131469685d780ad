"""Finds what a board offers, races the candidates in processes of their own, and says why one won."""
