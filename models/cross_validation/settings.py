"""Settings of a cross-validation of both stages."""

from dataclasses import dataclass, replace

from data.settings import CohortFolders, FoldSettings
from models.evaluation.settings import Outputs, RPNOutputs
from models.training.settings import RPNTraining, StrokeFormerTraining
from utils.settings import MAY_DIFFER, option, part


@dataclass(frozen=True)
class CrossValidationSettings:
    """Where folds run, and what they do.

    training, outputs: of stage 2, whose `Run` names the folder of the cross-validation.
    rpn, rpn_outputs: of stage 1.
    """

    launcher: str = option(
        str,
        "one fold after the other in this process, or each as a task of a Ray cluster: that of RAY_ADDRESS, else one "
        "that is started here (requirements-ray.txt)",
        "sequential",
        on_resume=MAY_DIFFER,
        choices=("sequential", "ray"),
    )
    cohort: CohortFolders = CohortFolders()
    folds: FoldSettings = FoldSettings()
    training: StrokeFormerTraining = StrokeFormerTraining()
    rpn: RPNTraining = part(RPNTraining(), "rpn_")
    outputs: Outputs = Outputs()
    rpn_outputs: RPNOutputs = part(RPNOutputs(), "rpn_")

    @property
    def seed(self) -> int:
        return self.training.seed

    @property
    def num_workers(self) -> int:
        return self.training.loading.num_workers

    def with_spacing(self, spacing_mm: tuple[float, float, float] | None) -> "CrossValidationSettings":
        """On voxels of that size (D, H, W)."""
        grid = replace(self.training.grid, spacing=spacing_mm)
        return replace(self, training=replace(self.training, grid=grid))

    def with_groups(self) -> "CrossValidationSettings":
        """With the runs of all folds and both stages in one W&B group, unless another is asked for."""
        training, rpn = self.training, self.rpn
        default = training.run.model_prefix
        training = replace(training, run=replace(training.run, group=training.run.group or default))
        return replace(self, training=training, rpn=replace(rpn, run=replace(rpn.run, group=rpn.run.group or default)))
