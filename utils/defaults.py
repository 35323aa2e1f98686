"""Defaults that the command line shows and the code behind it falls back to."""

SCAN_DIM = (1, 189, 192, 192)  # (C, D, H, W), of ATLAS
SUBVOLUME_DEPTH = 189  # slices of a scan that are segmented at a time: all of ATLAS
