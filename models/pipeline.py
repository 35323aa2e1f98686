"""From a scan to regions, probabilities and lesions; no library of networks is needed, for the runner uses it too."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure

from data.files.space import resample, resample_nearest
from data.scans.prepared import PreparedScan
from models.segmentation.settings import SlidingWindow
from utils.plots import plot_volume_prediction
from utils.regions.region import Region, evidence_map
from utils.scores.masks import Decision, lesion_probability

BATCH_SIZE = 8  # windows at a time: another number may round otherwise
RegionSource = Callable[[PreparedScan], list[Region]]  # of the networks' grid


class Segmenter(Protocol):
    """Stage 2: one network, an ensemble, or an exported model."""

    @property
    def decision(self) -> Decision: ...

    def segment(
        self, prepared: PreparedScan, regions: list[Region] | None, sliding: SlidingWindow, batch_size: int
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Prediction:
    """The results of both stages for a scan."""

    scan: PreparedScan
    regions: list[Region] | None  # of the networks' grid; None where the whole volume was segmented
    probabilities: np.ndarray  # (K, D, H, W) float32 of each class, on the networks' grid; class 0 is background
    decision: Decision

    @cached_property
    def own_probabilities(self) -> np.ndarray:
        """`probabilities` on the scan's own grid."""
        return self.scan.to_own_grid(self.probabilities)

    @cached_property
    def lesion_probability(self) -> np.ndarray:
        """(D, H, W) float32 in [0, 1] of any lesion, on the scan's own grid."""
        return lesion_probability(self.own_probabilities)

    @cached_property
    def evidence(self) -> np.ndarray | None:
        """(D, H, W) float32 in [0, 1] on the scan's own grid: that of stage 1's detections, 0 where there is none.

        None where the whole volume was segmented.
        """
        # It grows by a voxel of this grid: between thick slices a small box would fall through.
        margin = [math.ceil(max(self.scan.own.spacing_mm) / side) for side in self.scan.space.spacing_mm]
        evidence = evidence_map(self.regions, self.scan.brain.shape, margin)
        return None if evidence is None else resample_nearest(evidence, self.scan.space, self.scan.own)

    @cached_property
    def classes(self) -> np.ndarray:
        """(D, H, W) uint8 on the scan's own grid: the class of each voxel, 0 for background."""
        return self.decision.classes(self.own_probabilities, self.scan.own.spacing_mm, self.evidence)

    @property
    def lesions(self) -> np.ndarray:
        """(D, H, W) bool on the scan's own grid."""
        return self.classes > 0

    def picture(self) -> Figure:
        """Slices of the scan with lesions and regions."""
        scan = self.scan
        return plot_volume_prediction(
            scan.scan[0].astype(np.float32), scan.mask, self.lesions_on_grid, self.regions or [], scan.name
        )

    @property
    def lesions_on_grid(self) -> np.ndarray:
        """(D, H, W) bool on the networks' grid, for pictures."""
        return resample(self.lesions[None], self.scan.own, self.scan.space)[0]


@dataclass(frozen=True)
class TwoStage:
    """Both stages together."""

    segmenter: Segmenter
    regions_of: RegionSource | None = None  # by stage 1 or from a file; None to segment whole volumes
    sliding: SlidingWindow = SlidingWindow()
    batch_size: int = BATCH_SIZE

    def predict(self, scan: PreparedScan) -> Prediction:
        regions = None if self.regions_of is None else self.regions_of(scan)
        probabilities = self.segmenter.segment(scan, regions, self.sliding, self.batch_size)
        return Prediction(scan, regions, probabilities, self.segmenter.decision)
