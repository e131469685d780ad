"""Quantization: arithmetic on arrays by minimum and maximum (`uniform`) or by mean and deviation (`gaussian`); whole
models in one way (`engine`) or layer by layer within an accuracy budget (`search`).
"""
