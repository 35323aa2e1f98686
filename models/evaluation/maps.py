"""Maps of a scan on its own grid: lesion probability, its uncertainty, Grad-CAM."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import entr

from data.files.names import result_name
from data.files.space import resample
from data.files.volumes import write_like
from data.scans.cohort import Case
from data.scans.prepared import PreparedScan
from models.ensembles import StrokeFormerEnsemble
from models.segmentation.module import StrokeFormer
from utils.regions.region import Region
from utils.scores.decision import lesion_probability


@dataclass(frozen=True)
class MapWriter:
    """Writes maps of scans as float32 in [0, 1], in the format of each scan, below a model's folder.

    args: arguments of ``test_strokeformer.py``.
    """

    model: StrokeFormer | StrokeFormerEnsemble
    args: Namespace
    folder: Path

    def write(
        self,
        case: Case,
        scan: PreparedScan,
        regions: list[Region] | None,
        probabilities: np.ndarray,
        on_own_grid: np.ndarray,
    ) -> None:
        """Write what ``--probabilities`` and ``--uncertainty`` ask for.

        Args:
            probabilities: (K, D, H, W), what `StrokeFormer.segment` says of the scan.
            on_own_grid: the same on the scan's own grid.
        """
        if self.args.probabilities:
            self._write("probabilities", "probability", lesion_probability(on_own_grid), case)
        if self.args.uncertainty:
            if not isinstance(self.model, StrokeFormerEnsemble) and not self.args.flip_average:
                where = self.args.overlap, self.args.subvolume_depth, self.args.batch_size
                mirrored = self.model.segment_mirrored(scan, regions, *where)
                on_own_grid = scan.to_own_grid((probabilities + mirrored) / 2)
            self._write("uncertainty", "uncertainty", predictive_entropy(lesion_probability(on_own_grid)), case)

    def write_gradcam(self, case: Case, scan: PreparedScan, heat: np.ndarray) -> None:
        """Write the heat (D, H, W) of the networks' grid."""
        on_own_grid = resample(heat[None], scan.space, scan.own, outside=[0.0])[0]
        self._write("gradcam", "gradcam", np.clip(on_own_grid, 0, 1), case)

    def _write(self, folder: str, kind: str, values: np.ndarray, case: Case) -> None:
        write_like(self.folder / folder / result_name(case.scan, kind), values, case.scan)


def predictive_entropy(lesion: np.ndarray) -> np.ndarray:
    """How uncertain a mean prediction is, in bits (Kendall and Gal, 2017, arXiv 1703.04977, section 2.1).

    Of a voxel whose mean probability of lesion is p it is -p log2(p) - (1 - p) log2(1 - p): 0 where lesion or
    background is certain, 1 at 0.5. The mean is that of ``--flip_average``, over the scan and its mirror image, or that
    over the members of an ensemble (Lakshminarayanan et al., 2017, arXiv 1612.01474). So it is large where each says
    about 0.5, and where one is as sure of a lesion as the other is of none.

    Args:
        lesion: p, in [0, 1].

    Returns:
        In [0, 1], of the same shape and type.
    """
    return np.clip((entr(lesion) + entr(1 - lesion)) / np.log(2), 0, 1).astype(lesion.dtype)
