"""Where a float model comes from: .tflite as it is; SavedModel, Keras, PyTorch and ONNX by conversion in a child.

`resolve` is the front, `child` the process that alone imports TensorFlow or PyTorch; `made` writes what code gave.
"""
