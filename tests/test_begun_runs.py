"""A begun cross-validation belongs to its folds and its files: whatever else it meets is refused or done anew.

Trainings are replaced by a recorder of who was seen; everything around them is the real program.
"""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cross_validation
import models.cross_validation.folds
import models.cross_validation.state
import models.training.fit
import models.training.rpn
import models.training.strokeformer
from data.files.volumes import write_volume
from models.training.settings import Run, StrokeFormerTraining
from utils.errors import UserError
from utils.regions.region import whole_volume
from utils.scores.intervals import Estimate, without_interval

SHAPE = (6, 10, 12)


class Stopped(Exception):
    """The machine went down."""


class Cohort:
    """A few tiny scans on disk, each with a version that changes with its files."""

    def __init__(self, root: Path, n: int) -> None:
        self.root, self.version, self.drawn = root, {}, 0
        for _ in range(n):
            self.add()

    def add(self) -> None:
        self._draw(f"s{self.drawn}")

    def edit(self, subject: str) -> None:
        self._draw(subject)

    def remove(self, subject: str) -> None:
        for path in self._paths(subject):
            path.unlink()
        del self.version[self._paths(subject)[0].name]

    def subjects(self) -> list[str]:
        return sorted(name[4:].split("_")[0] for name in self.version)

    def _paths(self, subject: str) -> tuple[Path, Path]:
        return self.root / f"Scans/sub-{subject}_T1w.npy", self.root / f"Masks/sub-{subject}_T1lesion_mask.npy"

    def _draw(self, subject: str) -> None:
        self.drawn += 1
        rng = np.random.default_rng(self.drawn)
        scan, mask = rng.random(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
        scan[1:5, 2:8, 2:10] += 50
        mask[2:4, 3:5, 3 : 4 + self.drawn % 4] = 1
        for path, array in zip(self._paths(subject), (scan, mask), strict=True):
            write_volume(path, array[None])
        self.version[self._paths(subject)[0].name] = self.drawn


class Recorder:
    """Takes the place of training and evaluation, and checks who is scored by whom.

    tested: (run, scan) pairs that were scored in the last run.
    scores: of a scan by stage 2 in any run: the version of the scan and what the network had seen.
    trainings: how many networks were trained in the last run; after `stop_after` of them the machine goes down.
    groups: the group of each network's log.
    """

    def __init__(self, cohort: Cohort) -> None:
        self.cohort, self.tested, self.trainings, self.stop_after, self.groups = cohort, set(), 0, None, {}
        self.scores = {}

    def train(self, task) -> list:
        data, folder, run = task.data, task.folder, task.settings.run
        if self.trainings == self.stop_after:
            raise Stopped
        self.trainings += 1
        if hasattr(data, "sick"):  # stage 1
            names = {volume for side in (data.train, data.val) for volume in side.slices.table.volume}
        else:
            names = {case.name for case in [*data.train.cases["brain"], *(case for case, _ in data.val.windows)]}
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        seen = {name: self.cohort.version[name] for name in names}
        (folder / "checkpoints/best.ckpt").write_text(json.dumps({"seen": seen, "epochs": run.max_epochs}))
        self.groups[folder.name] = run.group
        return []

    def check(self, network: SimpleNamespace, scans) -> dict[str, Estimate]:
        for name, version in network.seen.items():
            assert self.cohort.version.get(name) == version, f"{name} is no longer what the network learned from"
        for scan in scans:
            assert scan.name not in network.seen, f"{scan.name} is scored by a network that saw it"
            self.tested.add((network.run, scan.name))
            if network.run.startswith("seg"):
                self.scores[scan.name] = self.cohort.version[scan.name], network.seen
        return {"score": without_interval(1.0, len(self.tested))}

    def load(self, path: Path) -> SimpleNamespace:
        return SimpleNamespace(seen=json.loads(path.read_text())["seen"], run=path.parent.parent.name)


@contextmanager
def recording(recorder: Recorder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation, "check_networks", lambda *_: None)
        patch.setattr("data.scans.brain.find_brain", lambda scan, head, own: head)
        patch.setattr(models.training.rpn, "build_rpn", lambda *_: nn.Identity())
        module = models.training.strokeformer
        patch.setattr(module, "StrokeFormer", lambda roi_size, **_: SimpleNamespace(window=roi_size))
        patch.setattr(models.training.fit, "train", recorder.train)
        patch.setattr(models.training.fit, "read_checkpoint", lambda path: {"global_step": 0, "epoch": 0})
        patch.setattr("models.training.runs.logged_metrics", lambda *_: None)
        for name in ("plot_loss_curves", "save_figure"):
            patch.setattr(models.training.fit, name, lambda *_: None)
        patch.setattr(models.training.rpn, "calibrate", lambda *_: None)
        patch.setattr(models.training.strokeformer, "decide", lambda *_: None)
        module = models.cross_validation.folds
        patch.setattr(module, "load_model", lambda kind, path: recorder.load(path))
        patch.setattr(module, "rpn_source", lambda rpn, _: rpn)
        patch.setattr(module, "collect_regions", lambda _, scans: {s.name: [whole_volume(SHAPE)] for s in scans})
        patch.setattr(module, "evaluate_rpn", lambda rpn, scans, *_: recorder.check(rpn, scans))
        patch.setattr(
            module, "evaluate_strokeformer", lambda both, _, scans, *__: recorder.check(both.segmenter, scans)
        )
        patch.setattr("report.pages.report_cross_validation", lambda *_: None)  # there are no tables to report
        patch.setattr("models.evaluation.segmentation.save_subgroups", lambda *_: None)
        patch.setattr("models.training.tracking.log_report", lambda *_: None)
        yield


class Bench:
    """A cohort, its recorder, and the program run on them."""

    def __init__(self, root: Path, n: int = 6) -> None:
        self.root, self.cohort = root, Cohort(root, n)
        self.recorder = Recorder(self.cohort)

    def run(self, *more, stop_after: int | None = None) -> str:
        """How a run ends: ``done``, ``stopped``, or the line with which it is refused."""
        self.recorder.tested, self.recorder.trainings, self.recorder.stop_after = set(), 0, stop_after
        command = [
            *["--scans_dir", self.root / "Scans", "--masks_dir", self.root / "Masks"],
            *["--model_prefix", "seg", "--rpn_model_prefix", "rpn", "--k", 2, "--splits", 34, 16, 50],
            *["--scan_dim", 1, *SHAPE, "--roi_size", 4, 4, 4, "--max_epochs", 1, "--rpn_max_epochs", 1],
            *["--default_root_dir", self.root / "StrokeFormer", "--rpn_default_root_dir", self.root / "RPN"],
            *["--scores_dir", self.root / "scores", "--rpn_scores_dir", self.root / "rpn_scores", *more],
        ]
        with recording(self.recorder):
            try:
                cross_validation.main(cross_validation.parse_args(list(map(str, command))))
            except Stopped:
                return "stopped"
            except UserError as error:
                return str(error)
        return "done"

    def fold(self, number: int) -> dict[str, list[str]]:
        return json.loads((self.root / "StrokeFormer/seg/folds.json").read_text())["folds"][number]

    def edit_folds(self) -> None:
        """Move a subject of the first fold from training to test."""
        path = self.root / "StrokeFormer/seg/folds.json"
        content = json.loads(path.read_text())
        content["folds"][0]["test"].append(content["folds"][0]["train"].pop())
        path.write_text(json.dumps(content))


# --- what is refused and what is done anew --------------------------------------------------------------

NOTHING, ONE_FOLD, ALL = 0, 2, None  # trainings after which the first run stops
# (what has been trained, what changes then): the complaint, or how many networks are trained in the second run.
OUTCOMES = {
    (NOTHING, "nothing"): 4,
    (NOTHING, "a subject joins"): 4,
    (NOTHING, "a subject leaves"): 4,
    (NOTHING, "a mask is redrawn"): 4,
    (NOTHING, "the folds are edited"): 4,
    (1, "a mask is redrawn"): "train sub-{train}_T1w.npy has changed",
    (1, "a tested mask is redrawn"): 3,
    (ONE_FOLD, "nothing"): 2,
    (ONE_FOLD, "a subject joins"): "has joined the cohort since",
    (ONE_FOLD, "a subject leaves"): "is not in the cohort; bring it back",
    (ONE_FOLD, "a mask is redrawn"): "train sub-{train}_T1w.npy has changed",
    (ONE_FOLD, "a tested mask is redrawn"): 2,
    (ONE_FOLD, "the folds are edited"): "folds.json has changed",
    (ONE_FOLD, "stage 1 learns on"): "what proposes its regions has changed",
    (ONE_FOLD, "stage 1 is removed"): "what proposes its regions has changed",
    (ONE_FOLD, "another seed"): "--seed 42, not 1",
    (ALL, "nothing"): 0,
    (ALL, "a subject joins"): "has joined the cohort since",
    (ALL, "a subject leaves"): "is not in the cohort; bring it back",
    (ALL, "a tested mask is redrawn"): "train sub-{test}_T1w.npy has changed",  # it trains in the other fold
    (ALL, "the folds are edited"): "folds.json has changed",
    (ALL, "stage 1 learns on"): "what proposes its regions has changed",
    (ALL, "stage 2 of a fold is removed"): 1,
}


def change(bench: Bench, what: str) -> list:
    """Make a change between two runs; arguments that the second run has more."""
    fold = bench.fold(0)
    if what == "a subject joins":
        bench.cohort.add()
    elif what == "a subject leaves":
        bench.cohort.remove(fold["test"][0])
    elif what == "a mask is redrawn":
        bench.cohort.edit(fold["train"][0])
    elif what == "a tested mask is redrawn":
        bench.cohort.edit(fold["test"][0])
    elif what == "the folds are edited":
        bench.edit_folds()
    elif what == "stage 1 is removed":
        (bench.root / "RPN/rpn_fold-0/checkpoints/best.ckpt").unlink()
    elif what == "stage 2 of a fold is removed":
        shutil.rmtree(bench.root / "StrokeFormer/seg_fold-1")
    return {"stage 1 learns on": ["--rpn_max_epochs", 2], "another seed": ["--seed", 1]}.get(what, [])


@pytest.mark.parametrize(("trained", "what"), OUTCOMES, ids=str)
def test_change_between_two_runs_is_refused_or_done_anew(tmp_path, trained, what):
    bench, outcome = Bench(tmp_path), OUTCOMES[trained, what]
    assert bench.run(stop_after=trained) == ("done" if trained is ALL else "stopped")
    fold, more = bench.fold(0), change(bench, what)
    ended = bench.run(*more)
    if isinstance(outcome, str):
        assert outcome.format(train=fold["train"][0], test=fold["test"][0]) in ended
        assert bench.recorder.trainings == 0 and not bench.recorder.tested  # refused before any work
    else:
        assert ended == "done" and bench.recorder.trainings == outcome
        tested = {name for run, name in bench.recorder.tested if run.startswith("seg")}
        assert tested == set(bench.cohort.version)


STEPS = st.tuples(
    st.sampled_from(["nothing", "join", "leave", "edit"]),
    st.integers(0, 9),  # which subject
    st.sampled_from([None, 0, 1, 2, 3]),  # trainings after which the run stops
)


def require_current_scores(bench: Bench) -> None:
    """The last score of each scan is of the scan as it is, by the network that its fold has now."""
    for number in range(2):
        ckpt = bench.root / f"StrokeFormer/seg_fold-{number}/checkpoints/best.ckpt"
        network = bench.recorder.load(ckpt)
        for subject in bench.fold(number)["test"]:
            name = f"sub-{subject}_T1w.npy"
            assert bench.recorder.scores[name] == (bench.cohort.version[name], network.seen)


@settings(max_examples=12, deadline=None)
@given(st.lists(STEPS, min_size=2, max_size=5))
def test_fold_that_is_not_tested_again_has_the_scores_that_it_would_get(tmp_path_factory, steps):
    bench = Bench(tmp_path_factory.mktemp("kept"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.cross_validation.state, "_has_outputs", lambda *_: True)
        for what, which, stop_after in steps:
            change_cohort(bench, what, which)
            if bench.run(stop_after=stop_after) == "done":
                require_current_scores(bench)
                assert bench.run() == "done" and not bench.recorder.tested
                assert bench.run("--n_predictions", 1) == "done"
                assert len(bench.recorder.tested) == 2 * len(bench.cohort.version)


def change_cohort(bench: Bench, what: str, which: int) -> None:
    subject = bench.cohort.subjects()[which % len(bench.cohort.version)]
    if what == "join":
        bench.cohort.add()
    elif what == "leave" and len(bench.cohort.version) > 4:
        bench.cohort.remove(subject)
    elif what == "edit":
        bench.cohort.edit(subject)


@settings(max_examples=30, deadline=None)
@given(st.lists(STEPS, min_size=2, max_size=5))
def test_no_subject_is_scored_by_a_network_that_saw_it_whatever_happens_between_runs(tmp_path_factory, steps):
    """The recorder also checks that no network is used whose training scans have changed since."""
    bench = Bench(tmp_path_factory.mktemp("begun"))
    for what, which, stop_after in steps:
        change_cohort(bench, what, which)
        ended = bench.run(stop_after=stop_after)
        if ended == "done":
            assert {name for run, name in bench.recorder.tested if run.startswith("seg")} == set(bench.cohort.version)


def test_resumed_run_reads_no_voxel_of_the_cohort(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    assert bench.run(stop_after=ONE_FOLD) == "stopped"
    monkeypatch.setattr("data.scans.checks.read_volume", lambda *_: pytest.fail("a voxel was read"))
    assert bench.run() == "done" and bench.recorder.trainings == 2


@pytest.mark.parametrize(
    ("asked", "rpn", "seg"),
    [([], "seg", "seg"), (["--group", "mine"], "seg", "mine"), (["--rpn_group", "mine"], "mine", "seg")],
)
def test_runs_of_a_cross_validation_are_one_group_unless_told_otherwise(tmp_path, asked, rpn, seg):
    bench = Bench(tmp_path)
    assert bench.run(*asked) == "done"
    groups = {"rpn_fold-0": rpn, "seg_fold-0": seg, "rpn_fold-1": rpn, "seg_fold-1": seg}
    assert bench.recorder.groups == groups


def test_training_and_cross_validation_of_one_name_do_not_mix(tmp_path):
    bench = Bench(tmp_path)
    assert bench.run() == "done"
    assert "holds a training" in bench.run("--model_prefix", "seg_fold-0")
    with recording(bench.recorder), pytest.raises(UserError, match="seg holds a cross-validation"):
        settings = StrokeFormerTraining(run=Run(default_root_dir=str(tmp_path / "StrokeFormer")))
        models.training.fit.fit(models.training.fit.Task("seg", *[None] * 2, settings, *[None] * 6))


def test_subject_that_joined_may_stay_out_by_giving_the_folds(tmp_path):
    bench = Bench(tmp_path)
    bench.run(stop_after=ONE_FOLD)
    before = set(bench.cohort.version)
    bench.cohort.add()
    assert bench.run("--folds", tmp_path / "StrokeFormer/seg/folds.json") == "done"
    assert {name for _, name in bench.recorder.tested} == before and bench.recorder.trainings == 2


# --- augmented scans -------------------------------------------------------------------------------------


def augment(bench: Bench, recipient: str, donor: str, **sources: str) -> list:
    """An augmented scan as ``python -m augmentation`` leaves it; the arguments that use it."""
    folder, name = bench.root / "Augmented", f"sub-{recipient}_T1w_augmented-1.npy"
    mask_name = f"sub-{recipient}_T1lesion_mask_augmented-1.npy"
    scan, mask = (next((bench.root / part).glob(f"sub-{recipient}_*")) for part in ("Scans", "Masks"))
    for source, path in ((scan, folder / "Scans" / name), (mask, folder / "Masks" / mask_name)):
        write_volume(path, np.load(source).transpose(0, 3, 1, 2))
    origin = {"mask": mask_name, "recipient": recipient, "donors": [donor], "sources": sources}
    provenance = folder / "provenance.json"
    others = json.loads(provenance.read_text()) if provenance.exists() else {}
    provenance.write_text(json.dumps({**others, name: origin}))
    bench.cohort.version[name] = 1
    return ["--use_augmented", "--augmented_dir", folder]


def test_fold_learns_from_no_augmented_scan_with_a_foreign_donor(tmp_path, capsys):
    bench = Bench(tmp_path)
    bench.run(stop_after=0)
    fold = bench.fold(0)
    shutil.rmtree(tmp_path / "StrokeFormer")
    recipient, donor = fold["train"]
    augment(bench, recipient, donor)
    assert bench.run(*augment(bench, donor, fold["test"][0]), "--folds_to_run", 0) == "done"
    assert "1 of 2 augmented scans" in capsys.readouterr().out
    for run in ("RPN/rpn_fold-0", "StrokeFormer/seg_fold-0"):
        seen = bench.recorder.load(tmp_path / run / "checkpoints/best.ckpt").seen
        assert f"sub-{recipient}_T1w_augmented-1.npy" in seen and f"sub-{donor}_T1w_augmented-1.npy" not in seen


def test_augmented_scans_that_change_after_training_are_refused(tmp_path):
    bench = Bench(tmp_path)
    bench.run(stop_after=0)
    train = bench.fold(0)["train"]
    shutil.rmtree(tmp_path / "StrokeFormer")
    more = augment(bench, *train)
    assert bench.run(*more, stop_after=1) == "stopped"
    path = tmp_path / f"Augmented/Scans/sub-{train[0]}_T1w_augmented-1.npy"
    np.save(path, np.load(path) + 1)
    assert f"train {path.name} has changed" in bench.run(*more)


def test_augmented_scans_of_a_lesion_that_was_redrawn_are_refused(tmp_path):
    bench = Bench(tmp_path)
    more = augment(bench, "s0", "s1", **{"sub-s1_T1w.npy": "a digest of the lesion as it was"})
    assert "was made before sub-s1_T1w.npy changed; augment anew" in bench.run(*more)
    assert bench.recorder.trainings == 0
