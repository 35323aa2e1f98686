"""What explains a result: layers to choose from, and maps of probability, uncertainty and Grad-CAM."""

import sys

import nibabel as nib
import numpy as np
import pytest
import torch

import cross_validation
import test_strokeformer
from data.files.space import Space
from data.scans.cohort import Case
from data.scans.prepared import PreparedScan
from models.evaluation.explanations import find_layers, gradcam, layers_of
from models.evaluation.segmentation import MapWriter, predictive_entropy
from models.evaluation.settings import Outputs
from models.pipeline import Prediction, TwoStage
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import SlidingWindow
from tests import drawn
from utils.errors import UserError
from utils.scores.masks import Decision, lesion_probability


def noise(shape):
    scan = np.random.default_rng(0).random((1, *shape))
    return drawn.prepared("a.npy", scan.astype(np.float16), np.ones(shape, bool))


# --- layers --------------------------------------------------------------------------------------------


def names_in(table: str) -> list[str]:
    return [line.split()[0] for line in table.splitlines()[1:]]


@pytest.mark.parametrize(
    ("arch", "window", "expected"),
    [
        ("trans_unet", (16, 16, 32), "encoders.0  16 x 8 x 8 x 16"),
        ("unetr", (16, 16, 32), "decoder2                              16 x 16 x 16 x 32"),
    ],
)
def test_every_layer_that_is_listed_can_be_drawn(arch, window, expected):
    torch.manual_seed(0)
    model = StrokeFormer(arch=arch, roi_size=window)
    table = layers_of(model).table()
    assert f"  {expected}\n" in table + "\n" and len(table.splitlines()) < 20
    heat = gradcam(model, noise(window), None, find_layers(model, names_in(table)))
    assert heat.shape == window and heat.min() >= 0 and heat.max() <= 1


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("nothing", "nothing is no layer of this network"), ("transformer", "transformer gives no map")],
)
def test_layer_that_cannot_be_drawn_is_refused(name, complaint):
    model = StrokeFormer(roi_size=(16, 16, 16))
    with pytest.raises(UserError, match=f"--target_layers {complaint}; --target_layers list shows"):
        find_layers(model, ["decoders.1", name])


def test_layers_are_listed_before_anything_else_is_asked_for(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ["--roi_size", "16", "16", "16", "--rpn_image_size", "64"]
    for script, arguments, lines in (
        (test_strokeformer, ["--ckpt_path", workspace.seg], ["decoders.1  16 x 4 x 4 x 8"]),
        (cross_validation, size, ["image of 1 x 16 x 16 x 16:", "encoders.2  96 x 2 x 2 x 2"]),
    ):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments), "--target_layers", "list"])
        script.main(script.parse_args())
        out = capsys.readouterr().out
        assert all(line in out for line in lines)
    assert not any(tmp_path.iterdir())


def test_the_list_of_layers_needs_a_checkpoint(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["test_strokeformer.py", "--target_layers", "list"])
    with pytest.raises(SystemExit):
        test_strokeformer.parse_args()
    assert "the following arguments are required: --ckpt_path;" in capsys.readouterr().err


# --- maps ----------------------------------------------------------------------------------------------


def test_entropy_is_one_bit_at_one_half_and_none_where_all_is_certain():
    found = predictive_entropy(np.array([0, 0.25, 0.5, 0.75, 1], np.float32))
    assert found.tolist() == pytest.approx([0, 0.8112781, 1, 0.8112781, 0]) and found.dtype == np.float32
    assert found.min() == 0 and found.max() == 1


def test_probability_is_that_of_any_lesion():
    classes = np.array([0.7, 0.1, 0.2], np.float32).reshape(3, 1, 1, 1)
    assert lesion_probability(classes).item() == pytest.approx(0.3)
    assert lesion_probability(1 + 1e-6 * classes[:1]).item() == 0


class Mirrored:
    """A network that says of the mirror image what it is told to."""

    def __init__(self, lesion):
        self.lesion, self.asked = np.array(lesion, np.float32), 0

    def segment_mirrored(self, *_):
        self.asked += 1
        return classes_of(self.lesion)


def classes_of(lesion):
    lesion = np.array(lesion, np.float32).reshape(1, 1, -1)
    return np.stack([1 - lesion, lesion])


def written_maps(folder, model, lesion, flip_average=False, **options) -> dict[str, list[float]]:
    """What is written of a scan of 1 x 1 x N voxels."""
    probabilities = classes_of(lesion)
    shape = probabilities.shape[1:]
    scan = drawn.prepared("a_T1w.npy", np.ones((1, *shape), np.float16), np.ones(shape, bool))
    case = Case("a", None, folder / "a_T1w.npy", None)
    pipeline = TwoStage(model, sliding=SlidingWindow(flip_average=flip_average))
    prediction = Prediction(scan, None, probabilities, Decision(0.5, 0))
    MapWriter(pipeline, Outputs(**options), folder).write(case, prediction)
    files = sorted(folder.rglob("*_T1w_*.npy"))
    return {path.relative_to(folder).as_posix(): np.load(path).ravel().tolist() for path in files}


def test_uncertainty_is_that_of_the_mean_over_the_scan_and_its_mirror_image(tmp_path):
    model = Mirrored([0, 1, 0.5, 0])
    found = written_maps(tmp_path, model, [0, 1, 0.5, 1], uncertainty=True, probabilities=True)
    assert found == {
        "probabilities/a_T1w_probability.npy": [0, 1, 0.5, 1],  # of the scan, as the mask
        "uncertainty/a_T1w_uncertainty.npy": [0, 0, 1, 1],  # where both are sure and say the contrary, 1
    }
    assert model.asked == 1


def test_flip_averaged_probabilities_are_not_averaged_again(tmp_path):
    model = Mirrored([])
    found = written_maps(tmp_path, model, [0, 0.25], uncertainty=True, flip_average=True)
    assert found == {"uncertainty/a_T1w_uncertainty.npy": [0, pytest.approx(0.8112781)]} and model.asked == 0


def test_scan_and_mirror_image_are_what_flip_average_averages():
    torch.manual_seed(0)
    model, scan = StrokeFormer(roi_size=(16, 16, 16)).eval(), noise((16, 20, 24))
    both = (model.segment(scan, None) + model.segment_mirrored(scan, None, SlidingWindow(), 1)) / 2
    averaged = model.segment(scan, None, SlidingWindow(flip_average=True))
    np.testing.assert_allclose(averaged, both, atol=1e-5)


def test_heat_is_written_where_it_lies_in_the_scanner(tmp_path):
    """The scan is stored as LPS with voxels of 4 mm, the network's grid has 2 mm: the places in mm must agree."""
    affine = np.array([[-4.0, 0, 0, 50], [0, -4, 0, 60], [0, 0, 4, -40], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.ones((10, 12, 8), np.float32), affine), tmp_path / "a_T1w.nii.gz")
    ras = np.diag([4.0, 4, 4, 1])
    ras[:3, 3] = 50 - 9 * 4, 60 - 11 * 4, -40
    space = Space((14, 18, 22), np.diag([2.0, 2, 2, 1]) + np.outer(ras[:, 3], [0, 0, 0, 1]) * [[1], [1], [1], [0]])
    heat = np.zeros(space.shape, np.float32)
    heat[4:9, 6:11, 10:15] = 0.9  # about voxel (6, 8, 12) of (D, H, W)
    scan = PreparedScan("a_T1w.nii.gz", "a", None, None, None, space, Space((8, 10, 12), ras), True)
    MapWriter(None, None, tmp_path).write_heat(Case("a", None, tmp_path / "a_T1w.nii.gz", None), scan, heat)
    written = nib.load(tmp_path / "gradcam/a_T1w_gradcam.nii.gz")
    assert written.get_data_dtype() == np.float32 and written.shape == (10, 12, 8)
    np.testing.assert_array_equal(written.affine, affine)
    values = written.get_fdata()
    hottest = affine @ [*np.unravel_index(values.argmax(), values.shape), 1]
    np.testing.assert_allclose(hottest, space.affine @ [8, 12, 6, 1])
    assert 0.7 < values.max() <= 0.9 and values.min() == 0 and (values > 0.45).sum() < 30
