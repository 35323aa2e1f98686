"""Several checkpoints as one network: averages worked by hand, a network with itself, and what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from onnxruntime import InferenceSession

from data.scans.cohort import pair_cases
from models.checkpoints import (
    CHECKPOINT_VERSION,
    joined_checkpoint,
    load_rpn,
    load_strokeformer,
    read_checkpoint,
    store_hyperparameters,
    write_checkpoint,
)
from models.cross_validation.state import checkpoints_in
from models.evaluation.derivatives import prediction_settings
from models.export.networks import export_stage_2
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.training.starts import start_from
from strokeformer import lesion_probability, propose, segment
from tests.test_prepare import run_here
from utils.errors import UserError
from utils.regions.rules import MISSING_SCORE, agreed_scores, pooled, select_boxes
from utils.scores.masks import Decision

BOX, FAR = (10, 10, 16, 16), (30, 30, 36, 36)
# Of networks after two epochs: what proposes and what is lesion is lowered until something is found.
NO_CHOICE = {"lesion_threshold": 0.3, "smallest_lesion_cm3": 1.0, "lesion_weights": []}
EAGER = {"rpn": {"score_threshold": 0.01}, "seg": NO_CHOICE}


def shaken(source: Path, path: Path, **hyperparameters) -> Path:
    """A checkpoint with other weights, or only other hyperparameters where some are given."""
    checkpoint = read_checkpoint(source)
    torch.manual_seed(3)
    if not hyperparameters:
        for weight in checkpoint["state_dict"].values():
            if weight.is_floating_point():
                weight *= 1 + 0.05 * torch.randn(weight.shape)
    checkpoint["hyper_parameters"] |= hyperparameters
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def networks(workspace, tmp_path_factory) -> SimpleNamespace:
    """Of each stage a checkpoint, a copy of it and another network, and a cross-validation of the two networks."""
    folder, found = tmp_path_factory.mktemp("networks"), SimpleNamespace()
    for stage, root in (("rpn", "RPN"), ("seg", "StrokeFormer")):
        paths = [folder / root / f"{stage}_fold-{i}" / "checkpoints/best.ckpt" for i in (0, 1)]
        paths[0].parent.mkdir(parents=True)
        shutil.copy(getattr(workspace, stage), paths[0])
        store_hyperparameters(paths[0], **EAGER[stage])
        shaken(paths[0], paths[1])
        copy = shutil.copy(paths[0], folder / f"{stage}_copy.ckpt")
        setattr(found, stage, SimpleNamespace(one=paths[0], other=paths[1], copy=copy))
    found.folder = folder / "StrokeFormer/seg"
    found.folder.mkdir()
    places = {"default_root_dir": "StrokeFormer", "rpn_default_root_dir": "RPN"}
    settings = {"model_prefix": "seg", "rpn_model_prefix": "rpn", **places}
    (found.folder / "run.json").write_text(json.dumps({"settings": settings}))
    folds = [{"train": ["1"], "val": ["2"], "test": ["3"]}, {"train": ["3"], "val": ["2"], "test": ["1"]}]
    (found.folder / "folds.json").write_text(json.dumps({"folds": folds}))
    for i in (0, 1):
        (found.folder / f"results_fold-{i}.json").write_text("{}")
    return found


@pytest.fixture(scope="module")
def scan(workspace) -> Path:
    return pair_cases([workspace.scans], None)[0].scan


@pytest.fixture
def test_script(workspace, tmp_path, monkeypatch):
    """``test_strokeformer.py`` on one scan, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (case, *_) = pair_cases([workspace.scans], None)
    common = ["test_strokeformer", "--scans", case.scan, "--brains_dir", case.scan.parent.parent / "Brains"]
    return lambda *more, code=0: run_here(*common, "--n_predictions", 0, *more, code=code)


# --- scores of stage 1 ---------------------------------------------------------------------------------


def agreed(found, networks, n_networks):
    """Scores of (slice, box, score) triples, each of one of the networks."""
    slices, boxes, scores = zip(*found, strict=True)
    return agreed_scores(np.array(networks), np.array(slices), np.array(boxes, float), np.array(scores), n_networks)


def test_score_is_the_mean_of_the_log_odds_that_the_networks_give_to_a_place():
    # Odds of 3 and 1 / 3: together even odds. In another slice, or elsewhere, it is another place.
    found = [(4, BOX, 0.75), (4, (11, 10, 17, 16), 0.25), (5, BOX, 0.9), (4, FAR, 0.9)]
    assert agreed(found, [0, 1, 0, 1], 2)[:2].tolist() == pytest.approx([0.5, 0.5])


def test_network_without_a_box_holds_a_place_for_noise_even_where_it_has_none_at_all():
    odds = (19 * MISSING_SCORE / (1 - MISSING_SCORE) * MISSING_SCORE / (1 - MISSING_SCORE)) ** (1 / 3)
    scores = agreed([(4, BOX, 0.95), (4, FAR, 0.95)], [0, 1], 3)
    assert scores.tolist() == pytest.approx([odds / (1 + odds)] * 2)


def test_one_network_has_its_own_scores_to_the_bit():
    found = {4: {"boxes": [BOX, BOX], "scores": [0.3, 0.1]}, 7: {"boxes": [FAR], "scores": [1.0]}}
    assert select_boxes([found], 0.01, "grouped").evidence.tolist() == [0.3, 0.1, 1.0]


def test_certainty_of_one_network_is_no_certainty_of_all():
    assert 0.5 < pooled(np.array([1.0, 0.01])) < 1


def test_candidate_far_beyond_one_networks_threshold_is_proposed_though_the_other_missed_it(
    networks, scan, monkeypatch
):
    """Log odds: 2.2 + 0 of the thresholds are less than 6.9 - 2.9 of 0.999 and noise, not than 4.6 - 2.9 of 0.99."""
    ensemble = load_rpn([networks.rpn.one, networks.rpn.other])
    for member, threshold in zip(ensemble.members, (0.9, 0.5), strict=True):
        member.hparams.update({"score_threshold": threshold})
    prepared = SimpleNamespace(brain=np.ones((40, 50, 60), bool))
    for score, n_regions in ((0.999, 1), (0.99, 0)):
        seen = {4: {"boxes": np.array([BOX], float), "scores": np.array([score])}}
        assert len(ensemble.propose(prepared, [seen, {}], (8, 8, 8))) == n_regions


# --- stage 2 -------------------------------------------------------------------------------------------


def test_probability_is_the_mean_of_the_members_in_the_regions_of_the_ensemble(networks, scan):
    rpn, paths = load_rpn(networks.rpn.one), [networks.seg.one, networks.seg.other]
    one, other, both = (lesion_probability(scan, rpn, load_strokeformer(path)).get_fdata() for path in (*paths, paths))
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-6)


def test_one_checkpoint_of_several_networks_has_their_mean_exported_too_and_a_training_starts_from_the_first(
    networks, scan, tmp_path
):
    paths = [networks.seg.one, networks.seg.other]
    write_checkpoint(tmp_path / "both.ckpt", joined_checkpoint(paths))
    both, apart = load_strokeformer(tmp_path / "both.ckpt"), load_strokeformer(paths)
    mean = lesion_probability(scan, None, apart).get_fdata()
    np.testing.assert_allclose(lesion_probability(scan, None, both).get_fdata(), mean, atol=1e-5)
    assert both.decision == load_strokeformer(paths[0]).decision

    windows = torch.rand(3, 1, *both.window)
    session = InferenceSession(export_stage_2(both).SerializeToString())
    with torch.no_grad():
        expected = torch.stack([member(windows).softmax(1) for member in apart.members]).mean(0)
    np.testing.assert_allclose(session.run(None, {"windows": windows.numpy()})[0], expected, atol=1e-4)

    alone = StrokeFormer(**{**both.hparams, "members": 1})
    start_from(alone, str(tmp_path / "both.ckpt"), None)
    first = apart.members[0].state_dict()
    assert all(torch.equal(weight, first[name]) for name, weight in alone.net.state_dict(prefix="net.").items())


def test_networks_that_make_no_one_checkpoint_are_refused(networks, tmp_path):
    write_checkpoint(tmp_path / "both.ckpt", joined_checkpoint([networks.seg.one, networks.seg.other]))
    wider = shaken(networks.seg.other, tmp_path / "wider.ckpt", window_size=(16, 16, 16))
    for others, line in (([tmp_path / "both.ckpt"], "holds several networks already"), ([wider], "has window_size")):
        with pytest.raises(UserError, match=line):
            joined_checkpoint([networks.seg.one, *others])


def test_decision_is_the_mean_of_the_members_unless_it_is_given(networks, tmp_path):
    others = [
        shaken(networks.seg.one, tmp_path / f"{i}.ckpt", lesion_threshold=t, smallest_lesion_cm3=s)
        for i, (t, s) in enumerate([(0.1, 0.0), (0.5, 0.2)])
    ]
    assert load_strokeformer([networks.seg.one, *others]).decision == Decision(pytest.approx(0.3), pytest.approx(0.4))
    assert load_strokeformer([networks.seg.one, *others], 0.7, 0.01).decision == Decision(0.7, 0.01)
    weighing = [shaken(others[i], tmp_path / f"{i}w.ckpt", lesion_weights=[i, 0, 1, 2, 4 * i]) for i in (0, 1)]
    assert load_strokeformer(weighing).decision.weights == (0.5, 0, 1, 2, 2)
    assert load_strokeformer([networks.seg.one, *weighing]).decision.weights == ()  # one of them has learned none
    assert load_strokeformer(weighing, smallest_lesion_cm3=2).decision.weights == (0.5, 0, 1, 2, 2)
    assert load_strokeformer(weighing, 0.2).decision.weights == ()


def test_network_with_a_copy_of_itself_gives_the_mask_of_the_network(networks, scan):
    alone = load_rpn(networks.rpn.one), load_strokeformer(networks.seg.one)
    twice = load_rpn([networks.rpn.one, networks.rpn.copy]), load_strokeformer([networks.seg.one, networks.seg.copy])
    mask = np.asarray(segment(scan, *alone).dataobj)
    assert mask.any()
    np.testing.assert_array_equal(segment(scan, *twice).dataobj, mask)
    np.testing.assert_array_equal(propose(scan, *twice).dataobj, propose(scan, *alone).dataobj)


def test_one_checkpoint_in_a_list_is_that_network_itself(networks):
    assert type(load_rpn([networks.rpn.one])) is RPN and type(load_strokeformer([networks.seg.one])) is StrokeFormer


# --- the script ----------------------------------------------------------------------------------------


def test_script_averages_the_folds_of_a_cross_validation_and_says_of_what_its_results_are(
    networks, scan, test_script, tmp_path
):
    mask = next(iter((scan.parent.parent / "Masks").glob(f"{scan.name.split('_')[0]}_*")))
    test_script(
        *["--masks", mask, "--ckpt_path", networks.folder, "--rpn_ckpt_path", networks.folder, "--uncertainty"],
        "--probabilities",
    )
    folder = tmp_path / "scores/seg_fold-0_and_1_more"
    both = load_rpn([networks.rpn.one, networks.rpn.other]), load_strokeformer([networks.seg.one, networks.seg.other])
    written = np.load(next((folder / "predictions").glob("*.npy")))[0]
    assert written.any()
    np.testing.assert_array_equal(segment(scan, *both).dataobj, written)
    settings = json.loads((folder / "run.json").read_text())["settings"]
    for argument, stage in (("ckpt_path", networks.seg), ("rpn_ckpt_path", networks.rpn)):
        assert settings[argument] == [str(stage.one), str(stage.other)]
    assert f"checkpoints {networks.seg.one}, {networks.seg.other}" in (folder / "report.html").read_text()
    assert pd.read_csv(tmp_path / "scores/scores.csv").model_name.tolist() == [folder.name]
    # The entropy is that of the mean over the members, which is the probability: no mirror image is looked at.
    (p,), (entropy,) = (np.load(next((folder / kind).glob("*.npy"))) for kind in ("probabilities", "uncertainty"))
    inside = (p > 0) & (p < 1)
    expected = -p[inside] * np.log2(p[inside]) - (1 - p[inside]) * np.log2(1 - p[inside])
    np.testing.assert_allclose(entropy[inside], expected, atol=1e-5)


def test_sidecars_of_a_derivative_list_all_checkpoints(networks):
    files = {"Checkpoint": [networks.seg.one], "RegionCheckpoint": [networks.rpn.one, networks.rpn.copy]}
    settings = prediction_settings("x", {**files, "Regions": None}, Decision(), flip_average=False)
    assert settings["Checkpoint"] == "best.ckpt" and settings["RegionCheckpoint"] == ["best.ckpt", "rpn_copy.ckpt"]
    assert len(settings["CheckpointSHA256"]) == 64
    first, second = settings["RegionCheckpointSHA256"]
    assert first == second and len(first) == 64


def test_checkpoints_of_a_moved_cross_validation_are_found(networks, tmp_path, monkeypatch):
    moved = shutil.copytree(networks.folder.parent.parent, tmp_path / "moved")
    monkeypatch.chdir(moved / "StrokeFormer")
    assert [Path(path).resolve() for path in checkpoints_in(["seg"], "rpn_")] == [
        moved / f"RPN/rpn_fold-{i}/checkpoints/best.ckpt" for i in (0, 1)
    ]
    assert checkpoints_in(["seg", "a.ckpt"])[2] == "a.ckpt"


# --- refusals ------------------------------------------------------------------------------------------


def refused(script, *arguments) -> str:
    (line,) = script(*arguments, code=2).err.splitlines()
    return line


def test_what_makes_no_ensemble_is_refused_in_one_line_before_any_work(networks, test_script, tmp_path):
    one, other = networks.seg.one, networks.seg.other
    work = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    assert f"{one} is given twice" in refused(test_script, "--ckpt_path", one, other, one)
    assert "is a checkpoint of RPN, not of StrokeFormer" in refused(test_script, "--ckpt_path", one, networks.rpn.one)
    assert "--target_layers explains one network" in refused(
        test_script, "--ckpt_path", one, other, "--target_layers", "decoders.1"
    )
    assert "--target_layers explains one network" in refused(
        test_script, "--ckpt_path", networks.folder, "--target_layers", "list"
    )
    line = refused(test_script, "--ckpt_path", one.parent.parent)
    assert f"{one.parent.parent} is no folder of a cross-validation" in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == work


def test_cross_validation_with_folds_yet_to_run_is_refused(networks, tmp_path):
    folder = shutil.copytree(networks.folder, tmp_path / "seg")
    (folder / "results_fold-1.json").unlink()
    with pytest.raises(UserError, match=r"1 fold of .*seg yet to run; run cross_validation\.py with --folds_to_run 1"):
        checkpoints_in([str(folder)])


def test_members_that_do_not_see_or_say_the_same_are_refused(networks, tmp_path):
    def other(stage, name, part, value):
        checkpoint = read_checkpoint(getattr(networks, stage).one)
        checkpoint[part][name] = value
        torch.save(checkpoint, tmp_path / f"{name}.ckpt")
        return [getattr(networks, stage).one, tmp_path / f"{name}.ckpt"]

    seg, rpn = load_strokeformer, load_rpn
    spacings = r"spacing_mm \(3.0, 3.0, 3.0\), but .* with \(8.0, 8.0, 8.0\)"
    with pytest.raises(UserError, match=rf"spacing_mm\.ckpt was trained with {spacings}; an ensemble takes"):
        seg(other("seg", "spacing_mm", "grid", [3.0, 3.0, 3.0]))
    with pytest.raises(UserError, match=rf"spacing_mm\.ckpt was trained with {spacings}; an ensemble takes"):
        rpn(other("rpn", "spacing_mm", "grid", [3.0, 3.0, 3.0]))
    with pytest.raises(UserError, match=r"scan_dim \(1, 24, 25, 30\), but .* with \(1, 24, 25, 29\)"):
        seg(other("seg", "scan_dim", "grid", [1, 24, 25, 30]))
    seg(other("seg", "spacing_mm", "grid", [8.001, 8.0, 8.0]))


def test_rpns_of_different_rules_are_refused(networks, tmp_path):
    grouped = shaken(networks.rpn.one, tmp_path / "a.ckpt", consistency="grouped")
    with pytest.raises(UserError, match=r"consistency grouped, but .* with linked"):
        load_rpn([networks.rpn.one, grouped])


@pytest.mark.parametrize(
    "changes", [{"roi_size": (8, 8, 8), "window_size": (8, 8, 16)}, {"num_classes": 3}, {"in_channels": 2}]
)
def test_members_of_other_regions_classes_or_channels_are_refused(tmp_path, changes):
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    for path, more in zip(paths, ({}, changes), strict=True):
        model = StrokeFormer(**{"roi_size": (8, 8, 16), **more})
        content = {
            "model": "StrokeFormer",
            "version": CHECKPOINT_VERSION,
            "hyper_parameters": dict(model.hparams),
            "state_dict": model.state_dict(),
        }
        torch.save(content, path)
    with pytest.raises(UserError, match=rf"b\.ckpt was trained with {next(iter(changes))} .*; an ensemble takes"):
        load_strokeformer(paths)
