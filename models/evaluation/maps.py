"""Maps of a scan on its own grid: lesion probability, its uncertainty, Grad-CAM."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from scipy.special import entr
from torch import nn

from data.files.names import result_name
from data.files.space import resample
from data.files.volumes import write_like
from data.scans.cohort import Case
from data.scans.prepared import PreparedScan
from models.ensembles import StrokeFormerEnsemble
from models.evaluation.gradcam import gradcam
from models.evaluation.settings import Outputs
from models.pipeline import Prediction, TwoStage
from models.segmentation.module import StrokeFormer
from utils.plots import plot_gradcam, save_figure
from utils.scores.decision import lesion_probability


@dataclass(frozen=True)
class MapWriter:
    """Writes maps of scans as float32 in [0, 1], in the format of each scan, below a model's folder."""

    pipeline: TwoStage
    outputs: Outputs
    folder: Path

    def write(self, case: Case, prediction: Prediction) -> None:
        """Write what ``--probabilities`` and ``--uncertainty`` ask for."""
        if self.outputs.probabilities:
            self._write("probabilities", "probability", prediction.lesion_probability, case)
        if self.outputs.uncertainty:
            self._write("uncertainty", "uncertainty", predictive_entropy(self._mean_of_views(prediction)), case)

    def _mean_of_views(self, prediction: Prediction) -> np.ndarray:
        """The lesion probability over members or, of one network, over the scan and its mirror image."""
        network, sliding = self.pipeline.segmenter, self.pipeline.sliding
        if isinstance(network, StrokeFormerEnsemble) or sliding.flip_average:
            return prediction.lesion_probability
        mirrored = cast(StrokeFormer, network).segment_mirrored(
            prediction.scan, prediction.regions, sliding, self.pipeline.batch_size
        )
        return lesion_probability(prediction.scan.to_own_grid((prediction.probabilities + mirrored) / 2))

    def write_gradcam(self, case: Case, prediction: Prediction, layers: Sequence[nn.Module]) -> None:
        """Write and draw where layers (`models.evaluation.gradcam.find_layers`) see a lesion."""
        scan, lesions, network = prediction.scan, prediction.lesions_on_grid, self.pipeline.segmenter
        assert isinstance(network, StrokeFormer)  # which the layers are of
        heat = gradcam(network, scan, prediction.regions, layers, self.pipeline.sliding)
        figure = plot_gradcam(scan.scan[0].astype(np.float32), heat, scan.mask, lesions, scan.name)
        save_figure(figure, self.folder / "gradcam" / f"{case.stem}.png")
        self.write_heat(case, scan, heat)

    def write_heat(self, case: Case, scan: PreparedScan, heat: np.ndarray) -> None:
        """Write heat (D, H, W) of the networks' grid."""
        on_own_grid = resample(heat[None], scan.space, scan.own, outside=[0.0])[0]
        self._write("gradcam", "gradcam", np.clip(on_own_grid, 0, 1), case)

    def _write(self, folder: str, kind: str, values: np.ndarray, case: Case) -> None:
        write_like(self.folder / folder / result_name(case.scan, kind), values, case.scan)


def predictive_entropy(lesion: np.ndarray) -> np.ndarray:
    """How uncertain a mean lesion probability p is, -p log2(p) - (1 - p) log2(1 - p): 0 to 1 bit.

    As Kendall and Gal (2017, arXiv 1703.04977, section 2.1). The mean is that over a scan and its mirror image, or over
    an ensemble (Lakshminarayanan et al., 2017, arXiv 1612.01474): it is large where each says about 0.5, and where one
    is as sure of a lesion as the other is of none.
    """
    return np.clip((entr(lesion) + entr(1 - lesion)) / np.log(2), 0, 1).astype(lesion.dtype)
