"""Segment 3D scans with an exported model: onnxruntime, NumPy, SciPy and nibabel are all that it needs."""

import csv
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils import cli
from utils.files import atomic_path, require_writable, write_json

PACKAGES = ("onnxruntime", "numpy", "scipy", "nibabel")
TABLE = "volumes.csv"


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model", required=True, help="folder that python -m models.export wrote")
    parser.add_argument("--scans", nargs="+", required=True, help="scans or folders of scans (.npy, .nii, .nii.gz)")
    parser.add_argument("--out_dir", required=True, help="folder of predictions/, regions.json and volumes.csv")
    parser.add_argument(
        "--brains_dir",
        nargs="+",
        default=None,
        metavar="DIR",
        help="folders of brain masks, one for each scan; None for Brains/ beside the folder of the scans or, where "
        "there is none, to take all that is not air for brain, which is right for stripped scans",
    )
    cli.add_scan_dim(parser, default=None, suffix="; None for that of the model")
    cli.add_loader(parser, batch_size=8)
    parser.add_argument(
        "--num_threads", type=cli.non_negative_int, default=0, help="threads of onnxruntime; 0 for one a core"
    )
    parser.add_argument("--probabilities", action="store_true", help="write the lesion probability of each voxel")
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    from data.scans.admission import admit
    from data.scans.brain import take_for_stripped, with_brains
    from data.scans.checks import check_headers
    from data.scans.cohort import pair_cases
    from data.scans.grid import say_untold_network
    from models.export.exported import read_model
    from runner.model import load_runner

    model = read_model(args.model)
    cases = with_brains(pair_cases(args.scans, None), args.brains_dir)
    grid = replace(model.grid, scan_dim=tuple(args.scan_dim or model.grid.scan_dim))
    check_headers(cases, grid.scan_dim, grid.resize_to)
    require_writable(args.out_dir, "--out_dir")
    runner = load_runner(args.model, model, args.num_threads)
    brains = Path(args.out_dir) / "heads"  # not brains/, where test_strokeformer.py keeps those that it found
    say_untold_network(cases, grid)
    say_taken_for_stripped(cases)
    admit(cases, grid, brains, args.num_workers, finder=take_for_stripped)
    segment_cases(runner, cases, grid, brains, args)
    print(f"Results are in {args.out_dir}")


def say_taken_for_stripped(cases: Sequence) -> None:
    """One line on the scans without brain mask: nothing here can find a brain."""
    from data.files.listing import counted
    from data.files.names import SCAN

    if masked := [case.name for case in cases if case.brain is None]:
        print(
            f"{counted(len(masked), SCAN)} without brain mask (e.g. {masked[0]}): all that is not air is taken for "
            "brain, which is wrong where there is a skull; then give brain masks with --brains_dir"
        )


def segment_cases(runner, cases: Sequence, grid, brains: Path, args: Namespace) -> None:
    """Segment scans; writes all that docs/handover.md lists below ``out_dir``."""
    from data.files.names import result_name
    from data.files.volumes import write_like
    from data.scans.prepared import prepare_scan
    from models.segmentation.windows import seen_on_own_grid
    from utils.progress import progress
    from utils.provenance import describe_run
    from utils.regions.region import write_regions
    from utils.scores.components import lesion_load
    from utils.scores.decision import lesion_probability

    folder, volumes, regions = Path(args.out_dir), [], {}
    for case in progress(cases, "Segmenting"):
        scan = prepare_scan(case, grid, brains)
        regions[case.name] = runner.propose(scan)
        probabilities = scan.to_own_grid(runner.segment(scan, regions[case.name], args.batch_size))
        seen = seen_on_own_grid(scan, regions[case.name])
        classes = runner.decision.classes(probabilities, scan.own.spacing_mm, seen)
        write_like(folder / "predictions" / result_name(case.scan, "prediction"), classes, case.scan)
        if args.probabilities:
            path = folder / "probabilities" / result_name(case.scan, "probability")
            write_like(path, lesion_probability(probabilities), case.scan)
        volumes.append((case.name, *lesion_load(classes > 0, scan.own_spacing_mm)))
    write_regions(folder / "regions.json", regions)
    write_volumes(folder / TABLE, volumes)
    made_with = {"model": runner.model.digests}
    write_json(folder / "run.json", {**describe_run(vars(args), PACKAGES), "inputs": made_with})


def write_volumes(path: Path, rows: Sequence[tuple[str, int, float]]) -> None:
    """A table of scans with the number of their lesions and cm3, which is empty where the voxel size is unknown."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["scan", "predicted_lesions", "predicted_cm3"])
        table.writerows((scan, n, "" if math.isnan(cm3) else cm3) for scan, n, cm3 in rows)


if __name__ == "__main__":
    cli.run(main, parse_args)
