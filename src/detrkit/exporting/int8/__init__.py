"""INT8: convolutions and linear layers of backbone and encoder in 8-bit integers, the rest in float32.

`layers.py` finds the layers in a graph, `calibration.py` makes inputs of images, `onnx.py` and `openvino.py` quantize,
each by its runtime's own tool; `quantizing.py` is the whole way.
"""
