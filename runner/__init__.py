"""Exported models on scans, with onnxruntime, NumPy, SciPy and nibabel alone: ``python -m runner``."""
