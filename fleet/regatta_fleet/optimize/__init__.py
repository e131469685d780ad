"""The optimizer: a trained float model goes in, variants with measured size, accuracy and latency come out.

Needs the [optimize] extra, never torch or TensorFlow. `pipeline.optimize` is the whole story; the other modules are
its steps, usable by themselves. Nothing is imported here, so that the command line starts without numpy.
"""
