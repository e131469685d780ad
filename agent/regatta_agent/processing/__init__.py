"""What happens before and after a model: pictures and sounds become its input, its outputs become an answer.

Pure numpy over arrays and bytes, by what the manifest describes (`regatta_protocol.processing`). It runs in the serving
worker, so that applications need neither; `processor.py` is the way in.
"""
