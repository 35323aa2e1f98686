"""How the lesions of the synthetic cohort compare with real ones: their number, volume, side and artery.

    python benchmarks/lesion_statistics.py --lesions ../shared/lesions

`--lesions` holds `masks/` in MNI152 and `ArterialAtlas136.nii.gz` on their grid. Lesions are drawn at 1 mm on the
template itself. ATLAS's are compared with what is published of them.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from common import ROOT, print_markdown
from scipy.ndimage import label

from data.phantom.heads import MIDLINE_MM, ORIGIN_MM, Grid, Head, load_templates
from data.phantom.lesions import draw_lesions
from data.phantom.statistics import ACUTE, CHRONIC, QUANTILES, even_numbers
from utils.progress import map_in_order

ONE_SIDED = 0.97  # of the volume
# ATLAS v2.0 at `QUANTILES`, and the share of its lesions under 0.03 cm3; nan where nothing is known.
ATLAS = {"volume": (0.14, np.nan, 4.3, np.nan, 136), "number": (np.nan, np.nan, 2, np.nan, 8)}
# Pairs of labels of the atlas, left and right.
ARTERIES = [
    "ACA",
    "MLS",
    "LLS",
    *(f"MCA {part}" for part in "FPTOI"),
    "PCA T",
    "PCA O",
    "PCTP",
    "ACTP",
    "B",
    "SC",
    "IC",
]
GROUPS = {"ACA": "ACA", "LLS": "LLS", "MCA": "MCA", "PCA": "PCA", "B": "VB", "SC": "VB", "IC": "VB"}


def drawn(task: tuple) -> tuple:
    """Components (cm3), share on the larger side and artery with the largest share of one drawn scan."""
    law, seed, index, atlas, affine = task
    maps = load_templates()
    grid = Grid((1.0, 1.0, 1.0))
    places = np.stack(np.meshgrid(*(axis.astype(np.float32) for axis in grid.axes_mm), indexing="ij"))
    head = Head(grid, places, *[maps["t1"]] * 3, maps["gm"] + maps["wm"] > 0.5, maps["brain"] > 0.5)
    opacity = draw_lesions(head, law, even_numbers(seed, index), 0.5, np.random.default_rng([seed, index, 1]))
    return measured(opacity > 0.5, places[0] - MIDLINE_MM, ORIGIN_MM, atlas, affine)
