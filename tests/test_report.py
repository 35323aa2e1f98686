"""Reports: the right scans, slices and numbers on a page that works in a browser without network."""

import re
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from report.charts import plot_bland_altman, plot_recall_by_volume, plot_scores
from report.page import Section, chart, table, write_page
from report.scans import FALSE, FOUND, LARGEST_VOXELS, MISSED, lesion_kinds, place_evenly, ranked, wrong_first
from tests.running import GRID, run_script

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


# --- what is shown -------------------------------------------------------------------------------------


def volumes(**columns) -> pd.DataFrame:
    return pd.DataFrame({"scan": list("abcde"), **columns})


def test_the_worst_the_median_and_the_best_of_the_scans_with_lesions_are_shown():
    scans = volumes(dice=[0.9, 0.0, 0.2, 0.7, 0.5], true_lesions=[1, 0, 2, 1, 1])
    assert {rank: row.scan for rank, row in ranked(scans).items()} == {"worst": "c", "median": "d", "best": "a"}
    healthy = volumes(dice=[1.0, 0.0, 1.0, 1.0, 1.0], true_lesions=[0] * 5)
    assert ranked(healthy)["worst"].scan == "b"


def test_a_scan_is_shown_once_where_there_are_few():
    scans = volumes(dice=[0.9, 0.1, 0.2, 0.7, 0.5], true_lesions=[1, 0, 0, 0, 0])
    assert {rank: row.scan for rank, row in ranked(scans).items()} == {"worst": "a"}
    scans = volumes(dice=[0.9, 0.1, 0.2, 0.7, 0.5], true_lesions=[1, 1, 0, 0, 0])
    assert {rank: row.scan for rank, row in ranked(scans).items()} == {"worst": "b", "median": "a"}


def test_nothing_is_shown_where_no_scan_is_left():
    assert ranked(volumes(dice=[0.9] * 5, true_lesions=[1] * 5)[:0]) == {}


def test_without_masks_the_largest_prediction_comes_first():
    scans = volumes(predicted_cm3=[0.0, 7.0, 2.0, 1.0, 0.5], predicted_lesions=[0, 1, 5, 1, 1])
    assert {rank: row.scan for rank, row in ranked(scans).items()} == {
        "most lesion": "b",
        "median": "d",
        "least lesion": "a",
    }


def test_slices_through_missed_and_then_false_lesions_come_first():
    lesions = pd.DataFrame(
        {
            "kind": ["lesion", "lesion", "false_lesion", "lesion", "false_lesion", "lesion"],
            "slice": [50, 10, 30, 11, 31, 51],
            "voxels": [900, 5, 40, 9, 60, 800],
            "found": pd.array([True, False, pd.NA, False, pd.NA, True], dtype="boolean"),
        }
    )
    assert wrong_first(lesions, [7, 8]) == [10, 11, 30, 31, 50]
    assert wrong_first(lesions[:1], [7, 50, 8]) == [7, 8, 50]
    assert wrong_first(lesions[:0], [7, 8]) == [7, 8]


def test_voxels_are_found_missed_or_false():
    target, prediction = np.array([[[1, 1, 0, 0]]], bool), np.array([[[1, 0, 1, 0]]], bool)
    assert lesion_kinds(prediction, target).tolist() == [[[FOUND, MISSED, FALSE, 0]]]
    assert lesion_kinds(prediction, None).tolist() == [[[FALSE, 0, FALSE, 0]]]


@pytest.mark.parametrize("affine", [np.diag([0.45, 0.45, 5, 1]), np.diag([-1.0, 1, 1, 1]) + np.eye(4, k=3) * 40])
def test_a_view_keeps_places_and_stays_small(affine):
    voxels = np.zeros((160, 160, 30) if affine[2, 2] > 1 else (197, 233, 189), np.uint8)
    voxels[90:110, 60:80, 10:20] = MISSED
    seen = place_evenly(nib.Nifti1Image(voxels, affine), "nearest")
    sizes = nib.affines.voxel_sizes(seen.affine)
    assert np.allclose(sizes, sizes[0]) and np.prod(seen.shape) < 1.2 * LARGEST_VOXELS
    before, after = (
        nib.affines.apply_affine(image.affine, np.argwhere(image.get_fdata() == MISSED).mean(0))
        for image in (nib.Nifti1Image(voxels, affine), seen)
    )
    assert np.abs(before - after).max() < 1.5


# --- charts --------------------------------------------------------------------------------------------


def test_the_limits_of_agreement_are_those_of_bland_and_altman():
    scans = pd.DataFrame({"scan": list("abc"), "true_cm3": [1.0, 2, 3], "predicted_cm3": [2.0, 2, 5]})  # +1, 0, +2
    (axes,) = plot_bland_altman(scans).axes
    assert axes.lines[0].get_xdata().tolist() == [1.5, 2, 4] and axes.lines[0].get_ydata().tolist() == [1, 0, 2]
    levels = sorted(line.get_ydata()[0] for line in axes.lines[1:])
    assert levels == pytest.approx([1 - 1.96, 1, 1 + 1.96])


def test_the_shares_found_are_counted_by_volume():
    lesions = pd.DataFrame(
        {"scan": list("aabbc"), "volume_cm3": [0.5, 1.0, 0.2, 9.9, 10.0], "found": [True, True, False, False, True]}
    )
    (axes,) = plot_recall_by_volume(lesions, seed=0).axes
    assert np.allclose([bar.get_height() for bar in axes.patches], [np.nan, 0.5, 0.5, 1, np.nan], equal_nan=True)
    counts = [label.get_text().split("\n")[1] for label in axes.get_xticklabels()]
    assert counts == ["0 lesions", "2 lesions", "2 lesions", "1 lesion", "0 lesions"]


def test_scores_without_interval_and_folds_are_drawn():
    scores = pd.DataFrame({"score": ["dice", "recall"], "mean": [0.5, np.nan], "low": [0.4, np.nan], "high": [0.7] * 2})
    assert "dice" in chart(plot_scores(scores), "scores")
    marks = plot_scores(scores.assign(folds=[[0.4, 0.6], []])).axes[0].lines
    assert [list(line.get_xdata()) for line in marks[-2:]] == [[0.4, 0.6], []]


# --- the page ------------------------------------------------------------------------------------------


def test_names_are_text_whatever_they_hold(tmp_path):
    evil = "<script>alert(1)</script>"
    frame = pd.DataFrame({"scan": [evil], "dice": [np.nan]})
    write_page(tmp_path / "r.html", evil, {evil: evil}, [Section(evil, [table(frame)], evil), Section("empty", [])])
    html = (tmp_path / "r.html").read_text()
    assert "<script" not in html and html.count("&lt;script&gt;") >= 6
    assert "empty" not in html and "nan" not in html.lower()


@pytest.fixture(scope="module")
def reports(workspace, tmp_path_factory) -> dict:
    """The pages that the scripts leave, by the command that makes them."""
    cwd = tmp_path_factory.mktemp("reports")
    seg = ["test_strokeformer.py", "--scans", workspace.scans, "--ckpt_path", workspace.seg]
    seg += ["--rpn_ckpt_path", workspace.rpn, "--score_threshold", 0.01, *GRID]
    subjects = "".join(f"sub-r001s00{i}\t{'acute' if i < 3 else 'chronic'}\n" for i in range(1, 7))
    (cwd / "participants.tsv").write_text(f"participant_id\tphase\n{subjects}")
    scored = ["--masks", workspace.masks, "--model_name", "scored", "--metadata", "participants.tsv"]
    run_script(*seg, *scored, cwd=cwd)
    run_script(*seg, "--model_name", "unscored", cwd=cwd)
    return {name: cwd / "scores" / name / "report.html" for name in ("scored", "unscored")}


def titles(html: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", html)


def test_a_report_tells_what_was_found_and_how_it_came_about(reports, workspace):
    html = reports["scored"].read_text()
    assert titles(html) == [
        *["Scores", "Lesions by volume", "Subgroups", "Where lesions lie", "Scans", "All scans"],
        *["Calibration of stage 1", "Training", "Settings"],
    ]
    scores = pd.read_csv(reports["scored"].parent.parent / "scores.csv")
    assert f"<td>{scores.dice[0]:.3f}</td>" in html
    assert html.count("<iframe") == 3 and "--score_threshold 0.01" in html
    assert all(scan.name in html for scan in workspace.scans.iterdir())


def test_subgroups_are_those_of_the_table_and_as_sure_as_their_scans_let_them_be(reports):
    folder, html = reports["scored"].parent.parent, reports["scored"].read_text()
    table, scans = (pd.read_csv(folder / file) for file in ("per_group_scores.csv", "per_scan_scores.csv"))
    phase = table[table.group == "phase"]
    assert phase["value"].tolist() == ["acute", "chronic"] and phase.scans.tolist() == [2, 4]
    assert phase.dice.tolist() == pytest.approx([scans.dice[:2].mean(), scans.dice[2:].mean()])
    assert phase.false_lesions.sum() == scans.false_lesions_isles.sum()
    assert "phase: acute" in html and f"<td>{phase.dice.iloc[0]:.3f}</td>" in html


def test_without_masks_a_report_tells_volumes(reports):
    html = reports["unscored"].read_text()
    assert titles(html) == ["Volumes", "Where lesions lie", "Scans", "Calibration of stage 1", "Training", "Settings"]
    assert "Dice" not in html.replace("DiceCELoss", "")


def test_a_report_is_one_small_file(reports):
    for path in reports.values():
        html = path.read_text()
        assert len(html) < 15e6
        assert not re.findall(r'<[^>]+ (?:src|href)="(?!data:|#)[^"]*"', re.sub("<iframe.*?</iframe>", "", html))


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_view_moves_in_a_browser_without_network(reports):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}).new_page()
        complaints = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(reports["scored"].as_uri())
        for summary in page.locator("summary").all():
            summary.click()
        canvas = page.frame_locator("iframe >> nth=0").locator("canvas").first
        canvas.scroll_into_view_if_needed()
        before = canvas.evaluate("it => it.toDataURL()")
        canvas.click(position={"x": 100, "y": 120})
        assert canvas.evaluate("it => it.toDataURL()") != before
        browser.close()
    assert not complaints
