"""Settings of a training, of either stage."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Literal

from data.settings import Loading, TrainingGrid, seed_option, transforms_option
from models.rpn.settings import RPNSettings
from models.segmentation.settings import SegmenterSettings, SlidingWindow, roi_size_option
from utils.errors import UserError
from utils.settings import MAY_DIFFER, option
from utils.validators import DistinctAction, logger, non_negative_float, non_negative_int, pathname, positive_int

LOGGERS = ("wandb", "csv", "tensorboard")
WANDB_MODES = ("online", "offline", "disabled", "dryrun", "run", "")  # values of ``WANDB_MODE``
PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16", "16-mixed": "float16"}  # torch's types

# What a resumed run may change, in both stages of a cross-validation at once.
shared_option = partial(option, on_resume=MAY_DIFFER, shared=True)


def precision_option():
    what = "of the networks' numbers; auto is bf16-mixed where the hardware computes in it, else 32-true"
    return option(str, what, "auto", shared=True, choices=("auto", *PRECISIONS))


def device_option():
    return option(non_negative_int, "index of the GPU; without one the CPU is used", 0)


@dataclass(frozen=True)
class Run:
    """Training."""

    model_prefix: str = option(str, "name of the runs and checkpoints", "", required=True)
    default_root_dir: str = option(pathname, "folder of checkpoints and logs", "StrokeFormer", on_resume=MAY_DIFFER)
    project: str = option(str, "W&B project", "StrokeFormer", on_resume=MAY_DIFFER)
    group: str | None = option(str, "W&B group; by default --model_prefix in a cross-validation", on_resume=MAY_DIFFER)
    max_epochs: int = option(positive_int, "training epochs", 250, on_resume=MAY_DIFFER)
    patience: int = option(positive_int, "epochs without progress before stopping", 50, on_resume=MAY_DIFFER)
    init_ckpt_path: str | None = option(
        pathname,
        "checkpoint or exported model, such as pretrained/dwi, from whose weights the training starts",
        on_resume=MAY_DIFFER,  # its content may not
    )


@dataclass(frozen=True)
class Logging:
    """Logging and devices."""

    logger: tuple[str, ...] = shared_option(
        logger,
        "where a training is logged; csv always, since its curves are drawn from it",
        ("wandb", "csv"),
        nargs="+",
        choices=LOGGERS,
    )
    entity: str = shared_option(str, "W&B entity", "neurone-lab")
    offline: bool = shared_option(None, "keep W&B records on this machine", False)
    devices: tuple[int, ...] = shared_option(
        non_negative_int,
        "GPU indices; without a GPU, as many processes on the CPU",
        (0,),
        nargs="+",
        action=DistinctAction,
    )
    precision: str = precision_option()
    compile: bool = shared_option(
        None, "compile the networks that are trained: slow first steps, faster ones from then on", False
    )
    min_delta: float = option(
        non_negative_float, "smallest gain of the monitored value that counts", 0.001, shared=True
    )
    lr_logging_interval: Literal["epoch", "step"] = shared_option(
        str, "how often the rate is logged", "epoch", choices=("epoch", "step")
    )
    num_samples: int = shared_option(non_negative_int, "predictions drawn while training", 5)
    log_every_n_val_epochs: int = shared_option(positive_int, "validation epochs between drawn predictions", 5)

    def require_wandb_mode(self) -> None:
        """Refuse, before long work, a ``WANDB_MODE`` that W&B does not know, where W&B is asked for."""
        mode = os.environ.get("WANDB_MODE", "")
        if "wandb" in self.logger and mode.lower() not in WANDB_MODES:
            raise UserError(f"WANDB_MODE is {mode!r}; set it to {', '.join(WANDB_MODES[:3])}, or unset it")


@dataclass(frozen=True)
class RPNTraining:
    """A training of stage 1."""

    seed: int = seed_option()
    transforms: tuple[str, ...] | None = transforms_option()
    roi_size: tuple[int, int, int] = roi_size_option()
    loading: Loading = Loading(batch_size=32)
    network: RPNSettings = RPNSettings()
    run: Run = Run(default_root_dir="RPN", project="RPN")
    logging: Logging = Logging()


@dataclass(frozen=True)
class StrokeFormerTraining:
    """A training of stage 2."""

    seed: int = seed_option()
    transforms: tuple[str, ...] | None = transforms_option()
    grid: TrainingGrid = TrainingGrid()
    loading: Loading = Loading()
    sliding: SlidingWindow = SlidingWindow()
    network: SegmenterSettings = SegmenterSettings()
    run: Run = Run()
    logging: Logging = Logging()
