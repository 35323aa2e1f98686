"""What networks trained on synthetic scans alone make of real ones.

    python benchmarks/real.py --real ../shared/real --out_dir runs/real --contrast dwi [--shipped]

Trains both stages on two synthetic cohorts of different seeds, by the recipe of the contrast, tests each on synthetic
scans that it never saw, and then on every real scan of the contrast, healthy ones too. Nothing may be chosen by these:
each look at them is a line in ``looks.csv`` of the folder. What is there already is not repeated. With ``--shipped``
nothing is trained: the model in ``pretrained/`` looks.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import pandas as pd
from common import ROOT, print_markdown
from PIL import Image

from data.files.space import Space, resample
from data.files.volumes import read_volume, volume_image
from data.scans.folds import Fold

N_TRAIN, N_VAL, N_TEST, SEEDS = 60, 16, 24, (61, 62)
# The grid of recipes/isles_*.args, and epochs in place of a GPU's hours.
SETTINGS = ["--scan_dim", 1, 73, 112, 112, "--spacing", 2, 2, 2, "--rpn_max_epochs", 6, "--max_epochs", 45]
RECIPES = {"t1w": "isles_dwi", "dwi": "isles_dwi", "flair": "isles_flair"}
SPACINGS_MM = {"t1w": (2, 2, 2), "dwi": (2, 2, 2), "flair": (5, 1, 1)}  # of the synthetic scans; FLAIR has thick slices
# The real scans of each contrast, and by whose names their masks are known; one without mask is healthy. On T1w old
# lesions alone are to be seen: SOOP's acute infarct of a day is not.
SCANS = {"t1w": "*_T1w.nii.gz", "flair": "*_[Ff][Ll][Aa][Ii][Rr].nii.gz", "dwi": "*[!C]_dwi.nii.gz"}  # no rec-ADC
MASKS = {"t1w": ["desc-lesionChronic_mask"], "flair": ["msk"], "dwi": ["msk", "desc-lesionAcute_mask"]}


def train(folder: Path, contrast: str, seed: int, more: list[str]) -> None:
    """Both stages on one fold of a synthetic cohort, tested on its remaining subjects."""
    if (folder / "scores/synthetic_summary.csv").exists():
        return
    look = ["--modality", contrast, "--stripped", "--oblique", "--ext", ".nii.gz"]
    cases = common.draw(folder / "cohort", seed, N_TRAIN + N_VAL + N_TEST, *look, spacing_mm=SPACINGS_MM[contrast])
    parts = np.split(np.array([case.subject for case in cases]), [N_TRAIN, N_TRAIN + N_VAL])
    fold, recipe = Fold(*(part.tolist() for part in parts)), f"@recipes/{RECIPES[contrast]}.args"
    common.cross_validate(folder, folder / "cohort", fold, "synthetic", seed, recipe, *SETTINGS, *more)


def train_all(folder: Path, contrast: str, more: list[str]) -> dict[Path, list[Path]]:
    """`train` of each seed; the checkpoints of both stages by the folder of the seed."""
    folders = {seed: folder / f"seed-{seed}" for seed in SEEDS}
    os.environ["OMP_NUM_THREADS"] = "1"  # the trainings share the cores
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda seed: train(folders[seed], contrast, seed, more), SEEDS))
    summaries = pd.concat(pd.read_csv(own / "scores/synthetic_summary.csv") for own in folders.values())
    print_markdown(summaries.to_dict("records"))
    stages = common.STAGE_1, common.STAGE_2
    return {own: [common.checkpoint_of(own, stage, "synthetic") for stage in stages] for own in folders.values()}


def gather(real: Path, contrast: str, out_dir: Path) -> None:
    """Links to the real scans of a contrast, and their masks on the scans' own grids; empty ones of healthy heads."""
    for path in sorted(real.rglob(SCANS[contrast])):
        subject, volume = path.name.split("_")[0], read_volume(path)
        own = Space(volume.array.shape[1:], volume.affine)
        lesions = true_lesions(path, real, MASKS[contrast], own)
        common.link(path, out_dir / f"Scans/{subject}_{contrast}.nii.gz")
        (out_dir / "Masks").mkdir(exist_ok=True)
        volume_image(lesions[None].astype(np.uint8), own.affine).to_filename(out_dir / f"Masks/{subject}_mask.nii.gz")


def true_lesions(scan: Path, real: Path, names: list[str], space: Space) -> np.ndarray:
    """(D, H, W) bool on a grid, of all masks of a scan's subject that end with one of `names`."""
    lesions = np.zeros((1, *space.shape), bool)
    masks = [mask for name in names for mask in real.rglob(f"{scan.name.split('_')[0]}_*{name}.nii.gz")]
    for mask in map(read_volume, masks):
        lesions |= resample(mask.array > 0.5, Space(mask.array.shape[1:], mask.affine), space)
    return lesions[0]


def test(networks: list[Path], folder: Path, cohort: Path, contrast: str) -> None:
    """Test the networks of both stages on the real scans, and note that they were looked at."""
    rpn, network = networks
    common.run(
        *["test_strokeformer.py", "--scans", cohort / "Scans", "--masks", cohort / "Masks", "--ckpt_path", network],
        *["--rpn_ckpt_path", rpn, "--scores_dir", folder / "real", "--model_name", "real", "--contrast", contrast],
    )
    common.print_looks(folder.parent.parent / "looks.csv", contrast, folder.name)


def rows_of(folder: Path) -> list[dict]:
    """A row for each real scan: its scores, its lesions found, and where most of what is false lies (MNI, in mm)."""
    tables = (pd.read_csv(folder / f"real/{name}.csv").set_index("scan") for name in ("per_scan_scores", "volumes"))
    scores = pd.concat(tables, axis=1)
    lesions = pd.read_csv(folder / "real/per_lesion_scores.csv")
    rows = []
    for scan, own in scores.iterrows():
        true, false = (lesions[(lesions.scan == scan) & (lesions.kind == kind)] for kind in ("lesion", "false_lesion"))
        place = ""
        if len(false):
            largest = false.loc[false.volume_cm3.idxmax()]
            place = f"{largest.side}, {largest.mni_x_mm:.0f} {largest.mni_y_mm:.0f} {largest.mni_z_mm:.0f}"
        found = {f"from {cm3} mL": true.found[true.volume_cm3 >= cm3].astype(bool) for cm3 in (0, 1)}
        scores_of = {name: round(own[name], 3) if len(true) else "" for name in ("dice", "lesion_f1_isles26")}
        # Of lesions that touch no true one, and of all voxels: a false lesion may touch a true one by a voxel.
        all_false = own.predicted_cm3 * (1 - own.precision)
        false_cm3 = {"false lesions cm3": round(false.volume_cm3.sum(), 2), "false cm3": round(all_false, 2)}
        counts = {f"found {size}": f"{hits.sum()} of {len(hits)}" for size, hits in found.items()}
        rows.append({"networks": folder.name, "scan": scan, **scores_of, **counts, **false_cm3, "at": place})
    return rows


def draw_sheet(networks: Path, file: Path) -> None:
    """One picture of all that networks drew on real scans, one below the other."""
    pictures = [Image.open(path).convert("RGB") for path in sorted(networks.glob("real/real/predictions/*.png"))]
    sheet = Image.new("RGB", (max(each.width for each in pictures), sum(each.height for each in pictures)))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (0, sum(each.height for each in pictures[:i])))
    sheet.reduce(2).quantize(256, Image.Quantize.FASTOCTREE).save(file, optimize=True)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared/real")
    parser.add_argument("--contrast", choices=SCANS, default="dwi")
    parser.add_argument("--shipped", action="store_true", help="look with the model in pretrained/, train none")
    parser.add_argument("more", nargs="*", help="after --, arguments of cross_validation.py")
    args = parser.parse_args()
    folder = args.out_dir / args.contrast
    if args.shipped:
        networks = {folder / "shipped": [ROOT / "pretrained" / args.contrast] * 2}
    else:
        networks = train_all(folder, args.contrast, args.more)
    gather(args.real.absolute(), args.contrast, folder / "real")
    for own, of_stages in networks.items():
        test(of_stages, own, folder / "real", args.contrast)
    print_markdown([row for own in networks for row in rows_of(own)])
    for own in networks:
        draw_sheet(own, own / "pictures.png")
    print(f"Pictures: {folder}/*/pictures.png, and {folder}/*/real/real/predictions")


if __name__ == "__main__":
    main()
