"""Ensembles: several trained networks of one stage that answer as one."""

from dataclasses import dataclass
from functools import reduce
from statistics import mean
from typing import Generic, TypeVar

import numpy as np
from pytorch_lightning.utilities.parsing import AttributeDict

from data.scans.grid import Grid
from data.scans.prepared import PreparedScan
from models.rpn.module import RPN, Detections
from models.segmentation.module import StrokeFormer
from utils.regions.region import Region, Shape
from utils.regions.rules import pooled, regions_of, select_boxes
from utils.scores.masks import Decision

# Hyperparameters that members have in common, besides their grid; windows may differ.
SHARED = ("in_channels", "num_classes", "roi_size", "consistency")
Member = TypeVar("Member", RPN, StrokeFormer)


@dataclass(frozen=True)
class _Ensemble(Generic[Member]):
    members: tuple[Member, ...]

    @property
    def grid(self) -> Grid | None:
        return self.members[0].grid

    @property
    def contrast(self) -> str | None:
        return next((member.contrast for member in self.members if member.contrast), None)

    @property
    def hparams(self) -> AttributeDict:
        """What the members have in common of `SHARED`."""
        held = self.members[0].hparams
        return AttributeDict({name: held[name] for name in SHARED if name in held})


class RPNEnsemble(_Ensemble[RPN]):
    """Several RPNs that stand where one does.

    A box proposes if its log odds exceed a member's threshold on average over the members
    (`utils.regions.rules.agreed_scores`): networks differ in how sure they are of the same lesion, and what is
    comparable is how far beyond its own calibrated threshold each one goes.
    """

    def regions(self, prepared: PreparedScan, roi_size: Shape) -> list[Region]:
        return self.propose(prepared, [member.detect_volume(prepared) for member in self.members], roi_size)

    def propose(self, prepared: PreparedScan, detections: list[Detections], roi_size: Shape) -> list[Region]:
        """The volume's regions, given `RPN.detect_volume` of each member."""
        threshold = float(pooled(np.array([member.hparams["score_threshold"] for member in self.members])))
        rule = self.hparams["consistency"]
        return regions_of(select_boxes(detections, threshold, rule), prepared.brain, roi_size, rule)


class StrokeFormerEnsemble(_Ensemble[StrokeFormer]):
    """Several StrokeFormers whose class probabilities are averaged; it stands where one does."""

    @property
    def decision(self) -> Decision:
        """The mean of the members' decisions."""
        decisions = [member.decision for member in self.members]
        all_weigh = all(each.weights for each in decisions)
        weights = tuple(map(mean, zip(*(each.weights for each in decisions), strict=True))) if all_weigh else ()
        threshold, smallest = (
            mean(getattr(each, name) for each in decisions) for name in ("threshold", "smallest_cm3")
        )
        return Decision(threshold, smallest, weights)

    def segment(self, *args, **kwargs) -> np.ndarray:
        """The mean of the members' `StrokeFormer.segment`, with its arguments."""
        return reduce(np.add, (member.segment(*args, **kwargs) for member in self.members)) / len(self.members)
