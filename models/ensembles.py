"""Ensembles: several trained networks of one stage that answer as one."""

from argparse import Namespace
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch

from data.scans.grid import Grid
from data.scans.prepared import PreparedScan
from models.rpn.module import RPN
from models.segmentation.decisions import Decision
from models.segmentation.module import StrokeFormer
from utils.regions.linked import pooled
from utils.regions.region import Region
from utils.regions.rules import keep_boxes, regions_of

# What members have in common, besides their grid (`models.checkpoints.require_alike`); windows and context may differ.
SHARED = ("in_channels", "num_classes", "roi_size")


@dataclass(frozen=True)
class RPNEnsemble:
    """Several RPNs of the rule ``linked``, whose evidence is averaged; it stands where one RPN does.

    The boxes of all members are linked into candidates that they have in common. A candidate is proposed if its log
    odds exceed what a member asks for, on average over the members (`utils.regions.linked.link_boxes`, `pooled`). So
    the threshold is the mean of the members' calibrated ones in log odds, and the growth of what further candidates
    must reach is the mean of theirs.

    Log odds, since networks differ in how sure they are of the same lesion: calibrated thresholds run from 0.1 to
    0.998, and what is comparable is how far beyond its own threshold each one goes. The mean of the probabilities
    would be below 0.998 for whatever one member misses, and the ensemble would lose the lesions of all.
    """

    members: tuple[RPN, ...]

    @property
    def grid(self) -> Grid | None:
        return self.members[0].grid

    def detect_volume(self, prepared: PreparedScan, batch_size: int = 32) -> list[dict[int, dict[str, torch.Tensor]]]:
        """`RPN.detect_volume` of each member."""
        return [member.detect_volume(prepared, batch_size) for member in self.members]

    def propose(
        self,
        prepared: PreparedScan,
        detections: list[dict[int, dict[str, torch.Tensor]]],
        roi_size: tuple[int, int, int],
    ) -> list[Region]:
        """The volume's regions, given what `detect_volume` returns of it."""
        settings = [member.hparams for member in self.members]
        threshold = float(pooled(np.array([each.score_threshold for each in settings])))
        growth = mean(each.evidence_growth for each in settings)
        kept = keep_boxes(detections, threshold, "linked", growth, prepared.brain.shape, roi_size)
        return regions_of(kept, prepared.brain, roi_size, "linked")


@dataclass(frozen=True)
class StrokeFormerEnsemble:
    """Several StrokeFormers whose class probabilities are averaged; it stands where one does."""

    members: tuple[StrokeFormer, ...]

    @property
    def grid(self) -> Grid | None:
        return self.members[0].grid

    @property
    def hparams(self) -> Namespace:
        """What the members have in common (`SHARED`)."""
        return Namespace(**{name: self.members[0].hparams[name] for name in SHARED})

    @property
    def decision(self) -> Decision:
        """The mean of the members' decisions: a voxel is lesion if the members' probabilities exceed their own
        thresholds on average."""
        decisions = [member.decision for member in self.members]
        return Decision(mean(each.threshold for each in decisions), mean(each.smallest_cm3 for each in decisions))

    def segment(self, *args, **kwargs) -> np.ndarray:
        """The mean of what `StrokeFormer.segment` returns of each member; the arguments are those."""
        return sum(member.segment(*args, **kwargs) for member in self.members) / len(self.members)
