"""Models in forms that other programs open: folders of diffusers and of the hub, ONNX, and a page for a browser."""
