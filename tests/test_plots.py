"""Pictures: right way up, boxes where they belong, legible, and written whole or not at all."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from utils.errors import UserError
from utils.plots import (
    DETECTION,
    DPI,
    MAX_SLICES,
    PREDICTION,
    REGION,
    TARGET,
    plot_coverage,
    plot_gradcam,
    plot_loss_curves,
    plot_slice_boxes,
    plot_volume_prediction,
    save_figure,
    slices_to_show,
)
from utils.regions.region import Region

SHAPE = (20, 24, 32)  # D, H, W
LONG_NAME = "sub-r001s001_ses-1_space-MNI152NLin2009aSym_desc-with-many-more-entities-than-usual_T1w.nii.gz"


def scan():
    """A head in air."""
    volume = np.zeros(SHAPE, np.float32)
    volume[3:17, 4:20, 4:28] = 0.6
    return volume


def lesion():
    """Slices 5 to 11, largest in slice 10; on the left (low H) and in front (high W)."""
    mask = np.zeros(SHAPE, bool)
    mask[5:12, 6:9, 20:24] = True
    mask[10, 6:10, 20:26] = True
    return mask


def boxes_of(axes, color):
    """Drawn boxes of a colour as (x, y, width, height)."""
    patches = [p for p in axes.patches if to_hex(p.get_edgecolor()) == color.lower()]
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in patches]


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def slice_picture(mask=None, boxes=(), scores=(), region_boxes=None, title="slice"):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return plot_slice_boxes(scan()[10], mask, boxes, np.array(scores, float), region_boxes, title)


# --- slices --------------------------------------------------------------------------------------------


def test_a_slice_stands_upright_with_left_on_the_left():
    axes = slice_picture(mask=lesion()[10]).axes[0]
    x, y = axes.transData.inverted().transform(axes.transAxes.transform([(0, 0), (1, 1)])).T
    assert np.allclose(x, (-0.5, 23.5)) and np.allclose(y, (-0.5, 31.5))  # H rightwards, W upwards
    assert axes.images[0].get_array().shape == (32, 24)
    assert {t.get_text(): t.get_position()[0] < 0.5 for t in axes.texts} == {"L": True, "R": False}


def test_boxes_are_drawn_around_their_voxels_on_the_turned_slice():
    figure = slice_picture(boxes=[(20, 6, 26, 10)], scores=[0.87], region_boxes=np.array([(16, 2, 30, 14)]))
    # x runs along W, the picture's y; voxel i reaches from i - 0.5 to i + 0.5.
    assert boxes_of(figure.axes[0], DETECTION) == [(5.5, 19.5, 4, 6)]
    assert boxes_of(figure.axes[0], REGION) == [(1.5, 15.5, 12, 14)]
    assert "0.87" in [text.get_text() for text in figure.axes[0].texts]


def test_the_drawn_box_encloses_the_drawn_lesion():
    mask = lesion()[10]
    axes = slice_picture(mask=mask, boxes=[(20, 6, 26, 10)], scores=[1.0]).axes[0]
    outline = axes.collections[0]
    assert to_hex(outline.get_edgecolor()[0]) == TARGET.lower()
    (x, y, width, height) = boxes_of(axes, DETECTION)[0]
    points = outline.get_paths()[0].vertices
    assert np.allclose([points.min(0), points.max(0)], [(x, y), (x + width, y + height)], atol=0.5)


def test_the_legend_names_what_is_drawn_and_nothing_else():
    assert legend_of(slice_picture()) == []
    everything = slice_picture(lesion()[10], [(1, 1, 5, 5)], [0.5], np.array([(0, 0, 9, 9)]))
    assert legend_of(everything) == ["True lesion", "Detection, with its score", "Proposed region"]


def test_a_slice_without_proposal_is_drawn_alone():
    figure = slice_picture(mask=np.zeros((24, 32), bool), region_boxes=np.zeros((0, 4)))
    assert len(figure.axes[0].patches) == 0


def test_the_surest_detection_lies_on_top():
    figure = slice_picture(boxes=[(1, 1, 5, 5), (2, 2, 9, 9), (3, 3, 7, 7)], scores=[0.9, 0.1, 0.5])
    assert boxes_of(figure.axes[0], DETECTION)[-1] == (0.5, 0.5, 4, 4)


# --- volumes -------------------------------------------------------------------------------------------


def test_shown_slices_spread_over_the_lesion_and_hold_its_largest():
    marked = np.zeros((100, 4, 4), bool)
    marked[20:70, 0, 0] = True
    marked[33, :2] = True
    shown = slices_to_show(marked, marked)
    assert len(shown) == MAX_SLICES and shown == sorted(set(shown))
    assert 33 in shown
    assert shown[0] < 30 and shown[-1] > 60


def test_shown_slices_all_hold_something():
    marked = np.zeros((100, 4, 4), bool)
    marked[[5, 50, 51, 95], 0, 0] = True
    assert slices_to_show(marked, marked) == [5, 50, 51, 95]


def test_without_lesion_the_shown_slices_spread_over_the_head():
    shown = slices_to_show(np.zeros(SHAPE, bool), scan())
    assert len(shown) == MAX_SLICES and min(shown) >= 3 and max(shown) < 17


def test_a_blank_volume_can_still_be_shown():
    assert len(slices_to_show(np.zeros(SHAPE, bool), np.zeros(SHAPE))) == MAX_SLICES


def test_volume_picture_has_the_plain_scan_above_the_marked_one():
    figure = plot_volume_prediction(scan(), lesion(), np.roll(lesion(), 1, axis=1), [Region(0, 20, 16, 2, 30, 14)], "x")
    plain, marked = figure.axes[:5], figure.axes[5:]
    assert "slice 10" in [axes.get_title() for axes in plain]
    assert all(len(axes.images) == 1 and not axes.patches for axes in plain)
    assert all(len(axes.images) == 2 and boxes_of(axes, REGION) == [(1.5, 15.5, 12, 14)] for axes in marked)
    assert legend_of(figure) == ["True lesion", "Predicted lesion", "Proposed region"]


def test_a_region_is_drawn_in_its_own_slices_alone():
    region = Region(0, 8, 16, 2, 30, 14)
    figure = plot_volume_prediction(scan(), lesion(), lesion(), [region], "x")
    shown = [int(axes.get_title().split()[1]) for axes in figure.axes[:5]]
    assert [bool(axes.patches) for axes in figure.axes[5:]] == [z < region.region_end for z in shown]


def test_calibration_marks_the_fraction_of_the_chosen_threshold():
    curve = pd.DataFrame(
        {
            "threshold": [0.1, 0.5, 0.9],
            "lesion_coverage": [1.0, 0.9, 0.5],
            "lesion_recall": [1.0, 0.8, 0.4],
            "proposed_fraction": [0.6, 0.3, 0.1],
        }
    )
    (axes,) = plot_coverage(curve, threshold=0.5, target=0.98).axes
    vertical = [line for line in axes.lines if list(line.get_xdata()) == [0.3, 0.3]]
    assert len(vertical) == 1 and axes.get_xlabel() == "proposed fraction of the brain"


def test_a_scan_without_mask_has_the_outline_of_the_prediction_alone():
    figure = plot_volume_prediction(scan(), None, lesion(), [], "x")
    outlines = [to_hex(each.get_edgecolor()[0]) for axes in figure.axes for each in axes.collections]
    assert set(outlines) == {PREDICTION.lower()}
    assert legend_of(figure) == ["Predicted lesion"]


# --- Grad-CAM ------------------------------------------------------------------------------------------


def heat_in(z):
    heat = np.zeros(SHAPE, np.float32)
    heat[z, 7, 22] = 1
    return heat


def slice_titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_gradcam_shows_the_hottest_slice_and_that_of_the_largest_lesion():
    figure = plot_gradcam(scan(), heat_in(6), lesion(), lesion(), "x")
    assert slice_titles(figure) == ["slice 6: most heat", "slice 10: largest lesion"]
    assert any("Grad-CAM" in axes.get_ylabel() for axes in figure.axes)  # the colour bar


def test_gradcam_shows_one_slice_where_both_are_the_same():
    assert slice_titles(plot_gradcam(scan(), heat_in(10), lesion(), lesion(), "x")) == [
        "slice 10: most heat, largest lesion"
    ]


def test_gradcam_without_heat_or_lesion_shows_the_middle():
    nothing = np.zeros(SHAPE, bool)
    assert slice_titles(plot_gradcam(scan(), heat_in(0) * 0, None, nothing, "x")) == ["slice 10: no heat, no lesion"]


def test_cold_voxels_leave_the_scan_visible():
    overlay = plot_gradcam(scan(), heat_in(6), lesion(), lesion(), "x").axes[0].images[1]
    assert overlay.get_alpha()[22, 7] == pytest.approx(0.75)  # turned: W, H
    assert np.count_nonzero(overlay.get_alpha()) == 1


# --- training ------------------------------------------------------------------------------------------


def lightning_metrics():
    """As Lightning writes it: a row for the rate without epoch, then validation, then training."""
    return pd.DataFrame(
        [
            {"step": 0, "lr-AdamW": 0.01},
            {"step": 2, "epoch": 0, "val_loss": 1.5, "val_dice": 0.1},
            {"step": 2, "epoch": 0, "train_loss": 2.0, "train_cls_loss": 0.7},
            {"step": 3, "lr-AdamW": 0.005},
            {"step": 5, "epoch": 1, "val_loss": 1.2, "val_dice": 0.2},
            {"step": 5, "epoch": 1, "train_loss": 1.0, "train_cls_loss": 0.6},
        ]
    )


def curves(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_losses_and_rate_stand_at_their_epoch():
    total, part, rate = plot_loss_curves(lightning_metrics()).axes
    assert [total.get_title(), part.get_title(), rate.get_title()] == ["loss", "cls loss", "learning rate"]
    assert curves(total) == {"training": [[0, 2], [1, 1]], "validation": [[0, 1.5], [1, 1.2]]}
    assert curves(part) == {"training": [[0, 0.7], [1, 0.6]]}
    assert rate.lines[0].get_xydata().tolist() == [[0, 0.01], [1, 0.005]]


def test_a_rate_logged_each_step_is_averaged_over_its_epoch():
    metrics = pd.concat([lightning_metrics(), pd.DataFrame([{"step": 1, "lr-AdamW": 0.03}])])
    rate = plot_loss_curves(metrics).axes[-1]
    assert rate.lines[0].get_ydata().tolist() == pytest.approx([0.02, 0.005])


def test_a_single_epoch_without_rate_is_still_seen():
    metrics = lightning_metrics().iloc[[1, 2]].dropna(axis=1, how="all")
    assert [axes.get_title() for axes in plot_loss_curves(metrics).axes] == ["loss", "cls loss"]
    assert all(line.get_marker() == "." for axes in plot_loss_curves(metrics).axes for line in axes.lines)


# --- files ---------------------------------------------------------------------------------------------


def figures():
    return {
        "boxes": slice_picture(lesion()[10], [(20, 6, 26, 10)], [0.9], np.array([(16, 2, 30, 14)]), LONG_NAME),
        "volume": plot_volume_prediction(scan(), lesion(), lesion(), [Region(0, 20, 16, 2, 30, 14)], LONG_NAME),
        "one_slice": plot_volume_prediction(scan()[10:11], lesion()[10:11], lesion()[10:11], [], LONG_NAME),
        "gradcam": plot_gradcam(scan(), heat_in(6), lesion(), lesion(), LONG_NAME),
        "one_gradcam": plot_gradcam(scan(), heat_in(10), None, lesion(), LONG_NAME),
        "losses": plot_loss_curves(lightning_metrics()),
    }


@pytest.mark.parametrize("name", figures())
def test_titles_and_legends_stay_inside_the_picture(name):
    figure = figures()[name]
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    for part in [*figure.axes, *figure.legends, figure._suptitle]:
        box = part.get_tightbbox()
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, part


def test_a_saved_figure_is_a_png_of_its_size_and_leaves_nothing_else(tmp_path):
    figure = figures()["volume"]
    expected = np.round(figure.get_size_inches()[::-1] * DPI).astype(int)
    save_figure(figure, tmp_path / "new" / "picture.png")
    picture = imread(tmp_path / "new" / "picture.png")
    assert picture.shape == (*expected, 4)
    assert picture[..., :3].std() > 0.1  # not blank
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["picture.png"]
    assert figure.axes == []  # its images are released


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    figure = slice_picture()
    monkeypatch.setattr(figure, "savefig", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"picture\.png cannot be written \(No space left\)"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_figures_leave_the_global_state_of_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    figures()
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
