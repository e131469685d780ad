"""Training of bare .tflite files in PyTorch: the bridge there and back (`bridge`), fine-tuning (`fit`), distillation
(`distill`), pruning while training (`sparsity`), Taylor scores (`taylor`) and quantization-aware training (`quantize`).

Needs the [train] extra. Only `available` and `options` can be imported without it, and say so.
"""
