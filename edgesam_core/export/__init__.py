"""From PyTorch to the ONNX files of a bundle. Serving never imports this package."""
