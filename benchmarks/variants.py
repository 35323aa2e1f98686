"""The variants of stage 1 that ``benchmarks/proposals.py`` compares, by name."""

from dataclasses import dataclass, field

ANYWHERE = ["--mode", "volume", "--lesions", "3", "--place", "anywhere"]
TRANSFERS = {
    "slice": ["--mode", "slice"],
    "volume": ["--mode", "volume", "--lesions", "3", "--place", "donor"],
    "anywhere": ANYWHERE,
    "crisp": [*ANYWHERE, "--rim", "0"],
    "small": [*ANYWHERE, "--rim", "0", "--min_scale", "0.3"],
}
RULES = {  # by which boxes become regions
    "grouped": {"consistency": "grouped"},
    "linked": {"consistency": "linked", "evidence_growth": 0.0},
    "rationed": {"consistency": "linked", "evidence_growth": 5.0},
}
UNTUNED = {"--slice_sampling": "natural", "--matching": "torchvision", "--transforms": None, "--ema_decay": "0"}


@dataclass(frozen=True)
class Variant:
    """What a variant changes in `FULL`.

    arguments: of train_rpn.py, None to leave one out.
    rule: a key of `RULES`.
    transfer: a key of `TRANSFERS`, None for the scans as they are.
    copies: new scans that the transfer makes of each training scan.
    times: as many steps as asked for.
    """

    arguments: dict = field(default_factory=dict)
    rule: str = "rationed"
    transfer: str | None = None
    copies: int = 1
    times: int = 1


# Published, regime, rationed, no_copies and full_small lead from the published method to ours; those from
# "slice_transfer" on change one thing in "rationed".
VARIANTS = {
    "published": Variant({**UNTUNED, "--dataset_anchors": "ATLAS"}, "grouped"),
    "regime": Variant(rule="grouped"),
    "linked": Variant(rule="linked"),
    "rationed": Variant(),
    "full": Variant(times=3),
    "full_linked": Variant(rule="linked", times=3),
    "twice": Variant(times=2),
    "no_copies": Variant(times=6),
    "full_anywhere": Variant(transfer="anywhere", times=6),
    "full_small": Variant(transfer="small", copies=3, times=6),
    "slice_transfer": Variant(transfer="slice"),
    "volume_transfer": Variant(transfer="volume"),
    "anywhere_transfer": Variant(transfer="anywhere"),
    "crisp_transfer": Variant(transfer="crisp"),
    "small_transfer": Variant(transfer="small"),
    "atlas_anchors": Variant({"--dataset_anchors": "ATLAS"}),
    "natural_sampling": Variant({"--slice_sampling": "natural"}),
    "torchvision_matching": Variant({"--matching": "torchvision"}),
    "no_transforms": Variant({"--transforms": None}),
    "no_lesion_contrast": Variant({"--transforms": "flip affine contrast"}),
    "no_ema": Variant({"--ema_decay": "0"}),
    "native_size": Variant({"--image_size": "98"}),
    "neighbours": Variant({"--context": "neighbours"}),
    "mirror": Variant({"--context": "mirror"}),
    "hard_negatives": Variant({"--hard_negatives": "0.5"}),
    "focal": Variant({"--focal": ""}),
    "label_smoothing": Variant({"--label_smoothing": "0.1"}),
}
