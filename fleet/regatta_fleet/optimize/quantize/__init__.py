"""Quantization: the arithmetic as a library on arrays (`uniform`), and whole models (`static`)."""
