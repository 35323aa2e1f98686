"""Defaults that the command line shows and the code behind it falls back to."""

SCAN_DIM = (1, 189, 192, 192)  # (C, D, H, W), of ATLAS
