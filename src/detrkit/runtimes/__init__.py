"""Exported models: files of ONNX, OpenVINO and torch.export, read and run as any model of detrkit."""
