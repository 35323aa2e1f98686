"""An exported model, ready to run: what `strokeformer.segment` does, by onnxruntime."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.scans.prepared import PreparedScan
from models.export.exported import NETWORKS, ExportedModel
from models.segmentation.settings import SlidingWindow
from models.segmentation.windows import slide
from runner.detector import Detector, Network
from utils.errors import UserError
from utils.regions.region import Region
from utils.regions.rules import regions_of, select_boxes
from utils.scores.masks import Decision


@dataclass(frozen=True)
class Runner:
    """Both stages of an exported model; `segmenter` makes class probabilities (B, K, D, H, W) of windows."""

    model: ExportedModel
    detector: Detector
    segmenter: Network

    @property
    def decision(self) -> Decision:
        """What the model takes for lesion, given the probabilities of `segment`."""
        return Decision(self.model.stage_2.lesion_threshold, self.model.stage_2.smallest_lesion_cm3)

    def propose(self, scan: PreparedScan) -> list[Region]:
        """The regions of a scan's grid that stage 1 proposes."""
        hp, roi_size = self.model.stage_1, self.model.stage_2.roi_size
        detections = self.detector.detect(scan.slices())
        boxes = select_boxes([detections], hp.score_threshold, hp.consistency, scan.space.shape, roi_size)
        return regions_of(boxes, scan.brain, roi_size, hp.consistency)

    def segment(
        self, prepared: PreparedScan, regions: list[Region] | None, sliding: SlidingWindow, batch_size: int
    ) -> np.ndarray:
        """Class probabilities (K, D, H, W) float32: background with certainty outside the brain and the regions."""
        hp = self.model.stage_2
        outside = [1.0] + [0.0] * (hp.num_classes - 1)
        return slide(lambda x: self.segmenter(x)[0], prepared, regions, outside, hp.window, sliding, batch_size)


def load_runner(folder: Path | str, model: ExportedModel, num_threads: int = 0) -> Runner:
    """The networks of a model folder, ready to run on the CPU with that many threads; 0 for one a core.

    Raises:
        UserError: onnxruntime is missing, or cannot read a network.
    """
    proposals, boxes, segmenter = (_open(Path(folder) / name, num_threads) for name in NETWORKS)
    return Runner(model, Detector(proposals, boxes, model.stage_1), segmenter)


def _open(path: Path, num_threads: int) -> Network:
    """A network of an ONNX file as a function of its inputs, in their order, that returns all outputs."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime is missing; pip install -r requirements-runner.txt") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen types for a file that it cannot read
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} cannot be read by onnxruntime {onnxruntime.__version__} ({reason})") from None
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))
