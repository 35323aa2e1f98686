"""Arguments on the networks of both stages and their training."""

from utils.cli.types import (
    DevicesAction,
    fraction,
    json_object,
    logger,
    non_negative_float,
    non_negative_int,
    overlap_ratio,
    positive_float,
    positive_int,
)

ARCHITECTURES = ("trans_unet", "unetr", "swin_unetr", "segformer3d", "segformer3d_full")
PRECISIONS = ("auto", "64-true", "32-true", "bf16-mixed", "16-mixed")
STRATEGIES = ("auto", "ddp")
LOGGERS = ("wandb", "csv", "tensorboard")
ARCH_SIZES = ("tiny", "small", "base")
CONTEXT = ("neighbours", "mirror")
SEG_CONTEXT = ("mirror", "position")
SLICE_SAMPLING = ("balanced", "natural")
MATCHING = ("small", "torchvision")
CONSISTENCY_RULES = ("linked", "grouped")
ANCHOR_SETS = ("ATLAS", "ISLES-DWI", "ISLES-FLAIR", "auto")


def add_num_classes(group) -> None:
    group.add_argument("--num_classes", type=positive_int, default=2, help="classes, background included")


def add_roi_size(group) -> None:
    group.add_argument(
        "--roi_size",
        type=positive_int,
        nargs=3,
        default=[64, 64, 64],
        metavar=("D", "H", "W"),
        help="smallest size of a proposed region, in voxels",
    )


def add_segmenter(parser, loss_config: dict) -> None:
    """Stage 2; `loss_config` is the default of ``--seg_loss_cfg`` (`models.defaults`)."""
    group = parser.add_argument_group("segmentation model")
    group.add_argument("--arch", choices=ARCHITECTURES, default="trans_unet", help="3D transformer of stage 2")
    group.add_argument(
        "--arch_size", choices=ARCH_SIZES, default="small", help="its size; base is as published where it is published"
    )
    add_num_classes(group)
    group.add_argument("--in_channels", type=positive_int, default=1, help="input channels")
    add_roi_size(group)
    group.add_argument(
        "--window_size",
        type=positive_int,
        nargs=3,
        default=None,
        metavar=("D", "H", "W"),
        help="size of the network's windows, in voxels; None for that of --roi_size",
    )
    group.add_argument(
        "--seg_context",
        nargs="*",
        choices=SEG_CONTEXT,
        default=[],
        help="further channels of a window: the other side of the head, and where in the head it is",
    )
    group.add_argument(
        "--deep_supervision", action="store_true", help="the coarser levels of trans_unet learn by a loss of their own"
    )
    group.add_argument("--opt_lr", type=positive_float, default=3e-5, help="learning rate at the end")
    group.add_argument("--warmup_lr", type=positive_float, default=4e-6, help="learning rate at the first step")
    group.add_argument("--max_lr", type=positive_float, default=4e-4, help="learning rate after the warm-up")
    group.add_argument("--warmup_steps", type=non_negative_int, default=10, help="steps of linear warm-up")
    add_adamw(group, weight_decay=1e-3)
    group.add_argument(
        "--gradient_clip", type=non_negative_float, default=1.0, help="largest norm of a step's gradient; 0 for any"
    )
    add_ema_decay(group, default=0.0)
    group.add_argument(
        "--seg_loss",
        default="DiceCELoss",
        help="a MONAI loss by name, or CCDiceCELoss, BlobLoss or ICILoss: small lesions count like large ones",
    )
    group.add_argument(
        "--seg_loss_cfg",
        type=json_object,
        default=loss_config,
        help="arguments of the segmentation loss as JSON",
    )
    group.add_argument(
        "--cls_loss", default=None, help="torch loss on 'this region holds a lesion', e.g. BCEWithLogitsLoss"
    )
    group.add_argument("--cls_loss_weight", type=non_negative_float, default=0.5, help="weight of --cls_loss")
    group.add_argument(
        "--seg_loss_weight",
        type=non_negative_float,
        default=0.5,
        help="weight of --seg_loss beside --cls_loss",
    )


def add_decision(parser, otherwise: str) -> None:
    """What is lesion, given its probability; `otherwise` says where it comes from without these arguments."""
    group = parser.add_argument_group("what is lesion")
    group.add_argument(
        "--lesion_threshold",
        type=fraction,
        default=None,
        help=f"probability above which a voxel is lesion; None for {otherwise}",
    )
    group.add_argument(
        "--smallest_lesion_cm3",
        type=non_negative_float,
        default=None,
        help=f"volume below which a predicted lesion is none; None for {otherwise}",
    )


def add_adamw(group, weight_decay: float, prefix: str = "") -> None:
    group.add_argument(
        f"--{prefix}weight_decay", type=non_negative_float, default=weight_decay, help="AdamW weight decay"
    )
    group.add_argument(f"--{prefix}eps", type=positive_float, default=1e-8, help="AdamW epsilon")
    group.add_argument(
        f"--{prefix}betas", type=overlap_ratio, nargs=2, default=[0.9, 0.999], help="AdamW moment decays"
    )


def add_ema_decay(group, default: float, prefix: str = "") -> None:
    group.add_argument(
        f"--{prefix}ema_decay",
        type=overlap_ratio,
        default=default,
        help="decay per step of the weights' moving average that is validated and kept; 0 for none",
    )


def add_rpn_model(parser, prefix: str = "") -> None:
    group = parser.add_argument_group("region proposal model")
    group.add_argument(f"--{prefix}lr", type=positive_float, default=1e-4, help="learning rate")
    add_adamw(group, weight_decay=1e-4, prefix=prefix)
    group.add_argument(
        "--dataset_anchors",
        choices=ANCHOR_SETS,
        default="ATLAS",
        help="data set whose anchor sizes are used, or auto to fit them to the training lesions",
    )
    group.add_argument(
        f"--{prefix}backbone_weights",
        default=None,
        help="file with a state dict of torchvision's resnet18, e.g. resnet18-f37072fd.pth",
    )
    group.add_argument(
        f"--{prefix}image_size",
        type=positive_int,
        default=192,
        help="pixels of a slice's shorter side inside the network; anchors scale with it",
    )
    add_ema_decay(group, default=0.99, prefix=prefix)
    group.add_argument(
        "--context",
        nargs="*",
        choices=CONTEXT,
        default=[],
        help="further channels of a slice: its neighbours in the volume, its mirror image",
    )
    group.add_argument(
        "--hard_negatives",
        type=fraction,
        default=0.0,
        help="share of an epoch's healthy slices that are those with the surest false detections",
    )
    group.add_argument(
        "--slice_sampling",
        choices=SLICE_SAMPLING,
        default="balanced",
        help="slices of an epoch: all with lesion and as many without, or as many of all",
    )
    group.add_argument(
        "--matching",
        choices=MATCHING,
        default="small",
        help="boxes that are learned as lesions: loose enough for small ones, or by torchvision's thresholds",
    )
    group.add_argument("--focal", action="store_true", help="focal loss on the anchors' objectness")
    group.add_argument(
        "--label_smoothing", type=fraction, default=0.0, help="smoothing of the classes of proposed boxes"
    )
    group.add_argument(
        "--consistency",
        choices=CONSISTENCY_RULES,
        default="linked",
        help="how boxes of slices become 3D regions: linked over neighbours, or by groups of similar slices",
    )
    group.add_argument(
        "--evidence_growth",
        type=non_negative_float,
        default=5.0,
        help="power of the proposed voxels with which the odds asked for of further linked boxes grow; 0 for none",
    )
    add_calibration(group)


def add_calibration(group) -> None:
    group.add_argument(
        "--score_threshold",
        type=fraction,
        default=None,
        help="evidence from which on boxes propose a region; None to calibrate it on the validation scans",
    )
    group.add_argument(
        "--target_coverage",
        type=fraction,
        default=0.98,
        help="share of lesion voxels and of lesions that calibration aims to cover",
    )


def add_training(parser, root: str, prefix: str = "", max_epochs: int = 250, patience: int = 50) -> None:
    """Run length and place of one model's training; the W&B account and devices are in `add_logging`."""
    name = root if not prefix else f"{root} (stage 1)"
    group = parser.add_argument_group(f"{name} training")
    group.add_argument(f"--{prefix}model_prefix", required=True, help=f"name of the {root} runs and checkpoints")
    group.add_argument(f"--{prefix}default_root_dir", default=root, help="folder of checkpoints and logs")
    group.add_argument(f"--{prefix}project", default=root, help="W&B project")
    group.add_argument(
        f"--{prefix}group", default=None, help="W&B group; in a cross-validation None for --model_prefix"
    )
    group.add_argument(f"--{prefix}max_epochs", type=positive_int, default=max_epochs, help="training epochs")
    group.add_argument(
        f"--{prefix}patience",
        type=positive_int,
        default=patience,
        help="epochs without progress before stopping",
    )


def add_devices(group) -> None:
    group.add_argument(
        "--devices",
        type=non_negative_int,
        nargs="+",
        action=DevicesAction,
        default=[0],
        help="GPU indices; without a GPU, the CPU, in as many processes with --strategy ddp",
    )
    group.add_argument("--num_nodes", type=positive_int, default=1, help="machines, each of which runs this command")
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="auto",
        help="how several devices train: ddp splits each batch over them; auto is ddp on GPUs, one process on a CPU",
    )
    group.add_argument(
        "--accumulate_grad_batches", type=positive_int, default=1, help="batches whose gradients make one step"
    )


def add_precision(group) -> None:
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the networks' numbers; auto is bf16-mixed where the hardware computes in it, else 32-true",
    )


def add_logging(parser) -> None:
    group = parser.add_argument_group("logging and devices")
    group.add_argument(
        "--logger",
        type=logger,
        nargs="+",
        choices=LOGGERS,
        default=["wandb", "csv"],
        help="where a training is logged; csv always, since its curves are drawn from it",
    )
    group.add_argument("--entity", default="neurone-lab", help="W&B entity")
    group.add_argument("--offline", action="store_true", help="keep W&B records on this machine")
    add_devices(group)
    add_precision(group)
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the networks that are trained: slow first steps, faster ones from then on",
    )
    group.add_argument(
        "--min_delta",
        type=non_negative_float,
        default=0.001,
        help="smallest gain of the watched validation value that counts",
    )
    group.add_argument(
        "--lr_logging_interval",
        choices=("epoch", "step"),
        default="epoch",
        help="how often the rate is logged",
    )
    group.add_argument("--num_samples", type=non_negative_int, default=5, help="predictions drawn while training")
    group.add_argument(
        "--log_every_n_val_epochs",
        type=positive_int,
        default=5,
        help="validation epochs between drawn predictions",
    )
