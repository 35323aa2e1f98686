"""What was made elsewhere: regions of another grid, scans of another contrast than the networks have learned."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

import strokeformer
import test_rpn
import test_strokeformer
import train_strokeformer
from data.files.names import CONTRASTS, contrast_of, standard_contrast
from data.files.nifti import affine_of
from data.files.space import Space
from data.phantom.cohort import make_subject
from data.scans.cohort import pair_cases
from data.scans.contrast import LEAST_T1W, brighter_inside, common_contrast, require_contrast
from data.scans.open import open_cohort
from data.settings import PhantomSettings
from models.checkpoints import load_rpn, load_strokeformer, read_checkpoint
from models.ensembles import StrokeFormerEnsemble
from models.regions import region_source
from models.rpn.settings import RegionSettings
from tests.drawn import prepared
from tests.running import GRID, ROI
from utils.errors import UserError
from utils.regions.region import Region, lying_on, read_regions, write_regions

OTHER_GRID = ["--scan_dim", "1", "28", "31", "33"]  # of the voxels of GRID, which are those of the scans


@pytest.fixture(scope="module")
def one(workspace, tmp_path_factory) -> SimpleNamespace:
    """One scan with its mask and its brain, and both networks."""
    folder = tmp_path_factory.mktemp("one")
    for part in ("Scans", "Masks", "Brains"):
        (folder / part).mkdir()
        shutil.copy(min((workspace.scans.parent / part).iterdir()), folder / part)
    shutil.copy(workspace.scans.parent / "cohort.csv", folder)
    (scan,) = (folder / "Scans").iterdir()
    return SimpleNamespace(folder=folder, scan=scan, rpn=workspace.rpn, seg=workspace.seg)


def segment(one, name: str, *arguments) -> tuple[np.ndarray, Path]:
    """``test_strokeformer.py`` in this process, where a little probability is lesion: its mask and its regions."""
    given = ["--scans", one.scan, "--ckpt_path", one.seg, "--model_name", name, "--n_predictions", 0]
    given += ["--scores_dir", one.folder / "scores", "--lesion_threshold", 0.02, "--smallest_lesion_cm3", 0, *arguments]
    test_strokeformer.main(test_strokeformer.parse_args(list(map(str, given))))
    (path,) = (one.folder / "scores" / name / "predictions").glob("*_prediction.npy")
    return np.load(path), one.folder / "scores" / name / "regions.json"


def surest_score(one, number: int) -> float:
    """A threshold for so few boxes that the edges of a grid do not decide which regions are joined."""
    model = load_rpn(one.rpn)
    cohort = open_cohort(pair_cases([one.scan], None), grid=model.grid)
    scores = np.concatenate([each["scores"] for each in model.detect_volume(cohort.prepare(cohort.cases[0])).values()])
    return float(np.sort(scores)[-number])


def evaluate_on_slices(workspace, rpn: Path, folder: Path, *more) -> None:
    """``test_rpn.py`` in this process."""
    data = ["--scans", workspace.slices, "--masks", workspace.slice_masks]
    given = [*data, "--ckpt_path", rpn, "--scores_dir", folder, *more]
    test_rpn.main(test_rpn.parse_args(list(map(str, given))))


# --- regions of another grid -----------------------------------------------------------------------------


def test_regions_of_another_grid_lead_to_the_mask_of_stage_1(one):
    stage_1 = ["--rpn_ckpt_path", one.rpn, "--score_threshold", surest_score(one, 3)]
    on_grid, _ = segment(one, "on_grid", *stage_1, *GRID)
    _, elsewhere = segment(one, "elsewhere", *stage_1, *OTHER_GRID)
    by_file, moved = segment(one, "by_file", "--regions", elsewhere, *GRID)
    assert on_grid.any() and np.count_nonzero(by_file != on_grid) <= 1
    (regions,), (kept,) = read_regions(moved).values(), read_regions(elsewhere).values()
    assert regions[0].grid["shape"] == [24, 25, 29] and kept[0].grid["shape"] == [28, 31, 33]
    assert regions != kept


def test_a_drawn_region_holds_the_same_voxels_of_the_scan_on_every_grid(one, tmp_path):
    own = Space((24, 25, 29), affine_of((8, 8, 8)))
    box = Region(8, 16, 6, 9, 22, 17, detected=(Region(8, 16, 6, 9, 22, 17),))
    write_regions(tmp_path / "regions.json", {one.scan.name: lying_on([box], own.as_json)})
    masks = [segment(one, "drawn", "--regions", tmp_path / "regions.json", *grid)[0] for grid in (GRID, OTHER_GRID)]
    inside = np.zeros(own.shape, bool)
    inside[box.slices] = True
    for mask in masks:
        lesion = mask[0].transpose(2, 0, 1) > 0
        assert lesion.any() and not (lesion & ~inside).any()
    np.testing.assert_array_equal(*masks)


def test_a_region_is_moved_through_millimetres_and_grows_to_voxels_that_it_touches(tmp_path):
    scan = prepared("a.npy", np.ones((1, 12, 20, 30), np.float16), np.ones((12, 20, 30), bool))
    scan = replace(scan, spacing_known=True)
    coarse = Space((4, 10, 10), np.array([[2.0, 0, 0, 0.5], [0, 3, 0, -5], [0, 0, 4, 0], [0, 0, 0, 1]]))
    box = Region(1, 2, 3, 2, 5, 4, detected=(Region(1, 2, 3, 2, 4, 3), Region(1, 2, 0, 2, 1, 3)))
    path = tmp_path / "regions.json"
    write_regions(path, {"a.npy": lying_on([box], coarse.as_json)})
    (region,) = region_source(RegionSettings(regions=str(path)), ["a.npy"], (1, 1, 1), None, None)(scan)
    # From 2 to 6 mm along D, 3.5 to 7.5 along H and 2.5 to 8.5 along W; the first voxel begins at -0.5 mm.
    assert region == Region(2, 7, 3, 4, 9, 8)
    assert region.detected == (Region(2, 7, 3, 4, 6, 6),)  # the other one lies beyond the grid
    (region,) = region_source(RegionSettings(regions=str(path)), ["a.npy"], (8, 4, 4), None, None)(scan)
    assert region == Region(0, 8, 3, 4, 9, 8)  # no smaller than the RoI


@pytest.mark.parametrize(
    ("box", "grid", "line"),
    [
        (
            Region(0, 1, 0, 0, 2, 2),
            Space((3, 4, 5), affine_of((2, 2, 2))),
            "of another voxel size, and that of the scan",
        ),
        (Region(0, 1, 0, 0, 6, 2), Space((3, 4, 5), affine_of((1, 1, 1))), "leaves its grid of (3, 4, 5) voxels"),
        (Region(0, 1, 8, 0, 9, 2), Space((3, 4, 9), affine_of((1, 1, 1))), "lies beyond the grid of (3, 4, 5) voxels"),
    ],
)
def test_a_region_whose_place_is_in_doubt_is_refused(tmp_path, box, grid, line):
    scan = prepared("a.npy", np.ones((1, 3, 4, 5), np.float16), np.ones((3, 4, 5), bool))
    write_regions(tmp_path / "regions.json", {"a.npy": lying_on([box], grid.as_json)})
    regions_of = region_source(RegionSettings(regions=str(tmp_path / "regions.json")), ["a.npy"], (1, 1, 1), None, None)
    with pytest.raises(UserError) as error:
        regions_of(scan)
    assert line in str(error.value) and str(error.value).endswith("propose the regions of a.npy again")


@pytest.mark.parametrize("grid", [[], {"shape": [3, 4]}, {"shape": [3, 4, 5], "affine": [[1, 2], [3]]}])
def test_malformed_grid_is_refused_by_name(tmp_path, grid):
    entry = {"region_start": 0, "region_end": 2, "xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1, "grid": grid}
    (tmp_path / "regions.json").write_text(json.dumps({"a.npy": [entry]}))
    with pytest.raises(UserError, match=r"regions\.json"):
        read_regions(tmp_path / "regions.json")


def test_regions_without_a_grid_are_taken_only_where_the_network_sees_the_scans_own_voxels(one, tmp_path):
    path = tmp_path / "regions.json"
    write_regions(path, {one.scan.name: [Region(8, 16, 6, 9, 22, 17)]})
    assert segment(one, "plain", "--regions", path, *GRID)[0].any()
    with pytest.raises(UserError) as error:
        segment(one, "plain", "--regions", path, *OTHER_GRID)
    assert (
        f"--regions {path}: it does not say on which grid they lie; propose the regions of {one.scan.name} again"
        in (str(error.value))
    )


def test_stage_2_learns_inside_regions_that_were_moved(one, tmp_path, monkeypatch):
    own = Space((24, 25, 29), affine_of((8, 8, 8)))
    write_regions(tmp_path / "regions.json", {one.scan.name: lying_on([Region(8, 16, 6, 9, 22, 17)], own.as_json)})
    learned = {}
    monkeypatch.setattr("models.training.strokeformer.train_strokeformer", lambda *given: learned.update(given[3]))
    folders = [
        word
        for side in ("train", "val")
        for part in ("Scans", "Masks")
        for word in (f"--{side}_{part.lower()}", one.folder / part)
    ]
    command = [*folders, "--model_prefix", "moved", "--default_root_dir", tmp_path, *OTHER_GRID, *ROI]
    command += ["--regions", tmp_path / "regions.json"]
    train_strokeformer.main(train_strokeformer.parse_args(list(map(str, command))))
    (region,) = learned[one.scan.name]
    assert region.shape == (8, 8, 16) and (region.region_start, region.ymin, region.xmin) != (8, 9, 6)


def test_regions_of_slices_lie_where_the_volume_lay(workspace, one, tmp_path):
    more = ["--n_predictions", 0, "--model_name", "rpn", "--score_threshold", 0.01, *ROI]
    evaluate_on_slices(workspace, one.rpn, tmp_path, *more)
    by_script = read_regions(segment(one, "same", "--rpn_ckpt_path", one.rpn, "--score_threshold", 0.01, *GRID)[1])[
        one.scan.name
    ]
    by_slices = read_regions(tmp_path / "rpn/regions.json")[one.scan.name]
    assert by_slices and by_slices[0].grid == by_script[0].grid


# --- another contrast ------------------------------------------------------------------------------------


def test_spellings_of_a_contrast_are_one():
    names = ["a_T1w", "a_T1", "a_mprage", "a_UNIT1", "a_T1ce", "a_T2_FLAIR", "a_trace", "a_dwi", "a_T2", "a", "a_T1map"]
    found = [standard_contrast(contrast_of(f"{name}.nii.gz")) for name in names]
    assert found == [*["t1w"] * 5, "flair", "dwi", "dwi", "t2w", None, "t1map"] and set(found) - {None} <= {*CONTRASTS}
    assert common_contrast(["a_T1w.npy", "b_T1.npy"]) == "t1w"
    assert common_contrast(["a_T2_FLAIR.npy", "b_FLAIR.npy"]) == "flair"
    for name in ("a_T1w_in_DWI", "a_ADC_dwi", "a_T1_FLAIR"):
        assert common_contrast([f"{name}.nii.gz"]) is None
    assert common_contrast(["a_space-T1w_dwi.nii.gz"]) == "dwi"
    assert common_contrast(["a_T1w.npy", "b.npy"]) is common_contrast(["a_T1w.npy", "b_FLAIR.npy"]) is None


def test_networks_keep_the_contrast_of_their_training_scans(one):
    assert {read_checkpoint(path)["contrast"] for path in (one.rpn, one.seg)} == {"t1w"}
    networks = load_rpn(one.rpn), load_strokeformer(one.seg)
    assert [network.contrast for network in networks] == ["t1w", "t1w"]
    assert StrokeFormerEnsemble((networks[1],)).contrast == "t1w"


def of_contrast(checkpoint: Path, contrast: str | None, folder: Path) -> Path:
    content = read_checkpoint(checkpoint)
    path = folder / f"{contrast}_{checkpoint.parent.parent.name}.ckpt"
    torch.save({**content, "contrast": contrast}, path)
    return path


def renamed(one, folder: Path, name: str) -> SimpleNamespace:
    """The scan under another name, with its brain."""
    for part, suffix in (("Scans", ""), ("Brains", "_desc-brain_mask")):
        (folder / part).mkdir(parents=True)
        shutil.copy(next((one.folder / part).iterdir()), folder / part / f"{name}{suffix}.npy")
    return SimpleNamespace(**{**vars(one), "folder": folder, "scan": folder / "Scans" / f"{name}.npy"})


def test_scan_of_another_contrast_by_its_name_is_refused_unless_told_otherwise(one, tmp_path):
    flair = renamed(one, tmp_path, "sub-1_FLAIR")
    with pytest.raises(UserError) as error:
        segment(flair, "flair", *GRID)
    assert str(error.value) == (
        f"sub-1_FLAIR.npy is of flair by its name, but {one.seg} was trained on t1w scans; take a network of flair, or "
        "give --contrast t1w where the name is wrong"
    )
    assert not list(tmp_path.rglob("*_prediction*"))
    assert segment(flair, "flair", "--contrast", "t1w", *GRID)[0].any()
    with pytest.raises(UserError, match=r"was trained on t1w scans, not on flair; take a network of flair"):
        segment(flair, "flair", "--contrast", "flair", *GRID)


def test_functions_refuse_and_take_what_the_script_does(one, tmp_path):
    rpn, model = load_rpn(one.rpn), load_strokeformer(one.seg)
    flair = renamed(one, tmp_path, "sub-1_FLAIR").scan
    image = nib.Nifti1Image(np.load(flair)[0], affine_of((8, 8, 8)))
    image.set_filename("sub-1_FLAIR.nii.gz")
    for function in (strokeformer.segment, strokeformer.lesion_probability, strokeformer.propose):
        for scan in (flair, image):
            with pytest.raises(
                UserError, match=r"sub-1_FLAIR.* is of flair by its name, but the network of stage [12]"
            ):
                function(scan, rpn, model)
        function(flair, rpn, model, contrast="t1w")
    with pytest.raises(UserError, match="--contrast T1 is none of t1w, t2w, flair"):
        strokeformer.segment(flair, rpn, model, contrast="T1")


def test_stages_of_two_contrasts_are_refused(one, tmp_path):
    plain, flair = renamed(one, tmp_path, "sub-1"), of_contrast(one.rpn, "flair", tmp_path)
    with pytest.raises(
        UserError, match=r"flair_rpn.ckpt was trained on flair scans, not on t1w; take a network of t1w"
    ):
        segment(plain, "two", "--rpn_ckpt_path", flair, *GRID)
    with pytest.raises(UserError, match="network of stage 1 was trained on flair scans, not on t1w"):
        strokeformer.segment(plain.scan, load_rpn(flair), load_strokeformer(one.seg))
    with pytest.raises(UserError, match=r"with contrast flair, but .* with t1w; an ensemble takes"):
        load_strokeformer([one.seg, of_contrast(one.seg, "flair", tmp_path)])
    unknown = of_contrast(one.seg, None, tmp_path)
    assert load_strokeformer([unknown, one.seg]).contrast == "t1w"
    assert segment(SimpleNamespace(**{**vars(plain), "seg": unknown}), "unknown", *GRID)[0].any()


def test_stage_1_is_not_tested_on_slices_of_another_contrast(workspace, one, tmp_path):
    path = of_contrast(one.rpn, "dwi", tmp_path)
    with pytest.raises(UserError, match=r"_T1w.npy is of t1w by its name, but .*dwi_rpn.ckpt was trained on dwi scans"):
        evaluate_on_slices(workspace, path, tmp_path)


def test_unknown_contrasts_are_not_questioned():
    require_contrast(["a.npy", "b_T1w.npy"], "t1w", "seg.ckpt")
    require_contrast(["a_FLAIR.npy"], None, "seg.ckpt")
    require_contrast(["a_FLAIR.npy"], "t1w", "seg.ckpt", "t1w")


@pytest.mark.parametrize("index", range(2))
def test_t1w_is_told_from_what_is_obviously_none_by_its_looks(index):
    found = {}
    for modality in ("t1w", "flair", "dwi"):
        plain = PhantomSettings(spacing=(4.0, 4.0, 4.0), modality=modality, stripped=True, seed=5, variety=0.0)
        settings = replace(plain, variety=0.5) if modality == "t1w" else plain  # grey matter is bright, as usual
        subject = make_subject(settings, index)
        found[modality] = brighter_inside(subject.scan[0], subject.brain, settings.spacing)
    assert found["t1w"] > LEAST_T1W + 0.15 and max(found["flair"], found["dwi"]) < LEAST_T1W, found
    assert brighter_inside(np.ones((5, 5, 5)), np.ones((5, 5, 5), bool), (3, 3, 3)) == 0


def test_scan_that_looks_like_another_contrast_is_refused_before_anything_is_written(one, tmp_path):
    subject = make_subject(PhantomSettings(spacing=(4.0, 4.0, 4.0), modality="flair", stripped=True, seed=5), 0)
    for part, array in (("Scans/sub-1", subject.scan), ("Brains/sub-1_brain_mask", subject.brain[None])):
        path = tmp_path / f"{part}.nii.gz"
        path.parent.mkdir()
        image = nib.Nifti1Image(array[0].transpose(1, 2, 0).astype(np.float32), affine_of((4, 4, 4)))
        image.to_filename(path)
    scan = tmp_path / "Scans/sub-1.nii.gz"
    given = ["--scans", scan, "--ckpt_path", one.seg, "--scores_dir", tmp_path / "scores", "--n_predictions", 0]
    arguments = list(map(str, given))
    with pytest.raises(UserError) as error:
        test_strokeformer.main(test_strokeformer.parse_args(arguments))
    assert f"{scan} looks like no T1w scan" in str(error.value) and "--contrast t1w" in str(error.value)
    assert not list(tmp_path.rglob("*prediction*"))
    with pytest.raises(UserError, match="looks like no T1w scan"):
        strokeformer.segment(scan, None, load_strokeformer(one.seg))
    strokeformer.segment(scan, None, load_strokeformer(one.seg), contrast="t1w")
