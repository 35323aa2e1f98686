"""Evaluation of stage 2 on whole volumes: scores into CSV tables, predictions, maps and pictures into a folder."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from scipy.special import entr
from torch import nn

from data.files.names import result_name
from data.files.space import resample
from data.files.volumes import write_like
from data.scans.checks import read_lesions
from data.scans.cohort import Case
from data.scans.prepared import PreparedScan
from models.ensembles import StrokeFormerEnsemble
from models.evaluation.explanations import find_layers, gradcam
from models.evaluation.places import Place, Places
from models.evaluation.settings import Outputs
from models.pipeline import Prediction, TwoStage
from models.segmentation.module import StrokeFormer
from utils.files import REGION_VOLUMES_FILE, STAGE_2_TABLES, intervals_file
from utils.plots import pictures_per_scan, plot_gradcam, save_figure
from utils.progress import progress
from utils.regions.region import lying_on, write_regions
from utils.scores.intervals import Estimate, interval_rows, means, ratios
from utils.scores.masks import OVERLAP_SCORES, lesion_load, lesion_probability
from utils.scores.metrics import SIZE_BINS, lesion_rows, scan_scores, scores_by_size, slice_scores
from utils.scores.subgroups import group_scores

PER_SCAN_FILE, PER_LESION_FILE, VOLUMES_FILE, PER_GROUP_FILE = STAGE_2_TABLES
CaseScores = tuple[dict, pd.DataFrame, pd.DataFrame]  # by `scan_scores`, `lesion_rows`, `slice_scores`, on its own grid


def evaluate_strokeformer(
    pipeline: TwoStage,
    cases: list[Case],
    scans: Iterable[PreparedScan],
    name: str,
    outputs: Outputs,
    seed: int,
    keep: Callable[[Case, Prediction], None] | None = None,
) -> dict[str, Estimate] | None:
    """Segment scans and, where they have masks, score them; writes what docs/outputs.md lists.

    `scans` are the prepared `cases`, in their order; `keep` is given each case with its prediction.

    Returns:
        Mean scores by column name of ``scores.csv``, or None without masks.
    """
    folder = Path(outputs.scores_dir) / name
    maps = MapWriter(pipeline, outputs, folder)
    layers = find_layers(pipeline.segmenter, outputs.target_layers)
    drawn = pictures_per_scan(min(outputs.n_predictions, len(cases)), len(cases), seed)
    volumes, scored, regions, places = [], [], {}, Places.asked_for(outputs)
    for case, scan, pictures in zip(progress(cases, f"Testing {name}"), scans, drawn, strict=True):
        prediction = pipeline.predict(scan)
        write_like(folder / "predictions" / result_name(case.scan, "prediction"), prediction.classes, case.scan)
        maps.write(case, prediction)
        if keep:
            keep(case, prediction)
        target = None if case.mask is None else read_lesions(case.mask)[0]
        place = places.add(scan, prediction.lesions, target)
        volumes.append(_volumes(scan, prediction.lesions, target, place))
        if target is not None:
            scored.append(_score_case(prediction, target, place))
        regions[case.name] = lying_on(prediction.regions or (), scan.space.as_json)
        if pictures:
            save_figure(prediction.picture(), folder / "predictions" / f"{case.stem}.png")
        if pictures and layers:
            maps.write_gradcam(case, prediction, layers)
    if pipeline.regions_of is not None:
        write_regions(folder / "regions.json", regions)
    places.write(folder)
    by_region = {REGION_VOLUMES_FILE: pd.concat(places.regions)} if places.regions else {}
    outputs.update(name, {VOLUMES_FILE: pd.DataFrame(volumes), **by_region})
    return _save_scores(outputs, name, scored, seed) if scored else None


def _volumes(scan: PreparedScan, prediction: np.ndarray, target: np.ndarray | None, place: Place) -> dict:
    """A row of `VOLUMES_FILE`: number and cm3 of the predicted lesions and of those of the mask, and the latter's side.

    Without a mask it is that of the predicted lesions.
    """
    row: dict[str, object] = {"scan": scan.name}
    for whose, mask in (("predicted", prediction), ("true", target)):
        load = (pd.NA, np.nan) if mask is None else lesion_load(mask, scan.own_spacing_mm)
        row[f"{whose}_lesions"], row[f"{whose}_cm3"] = load
    return {**row, "side": place.side(np.argwhere(prediction if target is None else target))}


def _score_case(prediction: Prediction, target: np.ndarray, place: Place) -> CaseScores:
    scan, lesions = prediction.scan, prediction.lesions
    brain = resample(scan.brain[None], scan.space, scan.own)[0]
    scores = scan_scores(lesions, target, scan.own_spacing_mm, prediction.lesion_probability)
    rows = lesion_rows(lesions, target, scan.own_spacing_mm, scan.own.affine)
    return (
        {"scan": scan.name, **scores},
        place.with_places(rows, lesions, target).assign(scan=scan.name),
        slice_scores(lesions, target, brain).assign(scan=scan.name),
    )


def _save_scores(outputs: Outputs, name: str, scored: list[CaseScores], seed: int) -> dict[str, Estimate]:
    per_scan = pd.DataFrame([scores for scores, _, _ in scored])
    per_lesion = pd.concat([lesions for _, lesions, _ in scored], ignore_index=True)
    per_slice = pd.concat([slices for _, _, slices in scored], ignore_index=True)
    per_lesion.insert(0, "scan", per_lesion.pop("scan"))
    estimates = means(per_scan.drop(columns="scan"), seed)
    intervals = [interval_rows(estimates)]
    for size in SIZE_BINS:  # of the means over its slices; those of a scan are drawn together
        by_scan = per_slice[per_slice["size"] == size].groupby("scan")[list(OVERLAP_SCORES)]
        intervals.append(interval_rows(ratios(by_scan.sum(), by_scan.count(), seed), size))
    tables = {
        outputs.scores_file: pd.DataFrame([{score: estimate.mean for score, estimate in estimates.items()}]),
        intervals_file(outputs.scores_file): pd.concat(intervals),
        PER_SCAN_FILE: per_scan,
        PER_LESION_FILE: per_lesion,
        outputs.per_size_scores_file: scores_by_size(per_slice),
    }
    outputs.update(name, tables)
    return estimates


def read_rows(path: Path, names: Iterable[str]) -> pd.DataFrame:
    """The rows of some models in a table of scores."""
    rows = pd.read_csv(path, dtype={"found": "boolean"})
    return rows[rows.model_name.isin(list(names))].reset_index(drop=True)


def read_scans(scores_dir: Path, names: Sequence[str]) -> pd.DataFrame:
    """A row a scan: its volumes and its scores."""
    volumes, scores = (read_rows(scores_dir / file, names) for file in (VOLUMES_FILE, PER_SCAN_FILE))
    return volumes.merge(scores, on=["model_name", "scan"])


def save_subgroups(outputs: Outputs, name: str, models: Sequence[str], groups: pd.DataFrame, seed: int) -> None:
    """Write the scores of subgroups over the test scans of all `models`, under one name; `groups` is `group_scans`'."""
    folder = Path(outputs.scores_dir)
    scans, lesions = read_scans(folder, models), read_rows(folder / PER_LESION_FILE, models)
    outputs.update(name, {PER_GROUP_FILE: group_scores(scans, lesions, groups, seed)})


@dataclass(frozen=True)
class MapWriter:
    """Writes maps of scans as float32 in [0, 1], in the format of each scan, below a model's folder."""

    pipeline: TwoStage
    outputs: Outputs
    folder: Path

    def write(self, case: Case, prediction: Prediction) -> None:
        """Write what ``--probabilities`` and ``--uncertainty`` ask for."""
        if self.outputs.probabilities:
            self._write("probabilities", "probability", prediction.lesion_probability, case)
        if self.outputs.uncertainty:
            self._write("uncertainty", "uncertainty", predictive_entropy(self._mean_of_views(prediction)), case)

    def _mean_of_views(self, prediction: Prediction) -> np.ndarray:
        """The lesion probability over members or, of one network, over the scan and its mirror image."""
        network, sliding = self.pipeline.segmenter, self.pipeline.sliding
        if isinstance(network, StrokeFormerEnsemble) or sliding.flip_average:
            return prediction.lesion_probability
        mirrored = cast(StrokeFormer, network).segment_mirrored(
            prediction.scan, prediction.regions, sliding, self.pipeline.batch_size
        )
        return lesion_probability(prediction.scan.to_own_grid((prediction.probabilities + mirrored) / 2))

    def write_gradcam(self, case: Case, prediction: Prediction, layers: Sequence[nn.Module]) -> None:
        """Write and draw where layers see a lesion."""
        scan, lesions, network = prediction.scan, prediction.lesions_on_grid, self.pipeline.segmenter
        assert isinstance(network, StrokeFormer)  # which the layers are of
        heat = gradcam(network, scan, prediction.regions, layers, self.pipeline.sliding)
        figure = plot_gradcam(scan.scan[0].astype(np.float32), heat, scan.mask, lesions, scan.name)
        save_figure(figure, self.folder / "gradcam" / f"{case.stem}.png")
        self.write_heat(case, scan, heat)

    def write_heat(self, case: Case, scan: PreparedScan, heat: np.ndarray) -> None:
        """Write heat (D, H, W) of the networks' grid."""
        on_own_grid = resample(heat[None], scan.space, scan.own, outside=[0.0])[0]
        self._write("gradcam", "gradcam", np.clip(on_own_grid, 0, 1), case)

    def _write(self, folder: str, kind: str, values: np.ndarray, case: Case) -> None:
        write_like(self.folder / folder / result_name(case.scan, kind), values, case.scan)


def predictive_entropy(lesion: np.ndarray) -> np.ndarray:
    """How uncertain a mean lesion probability p is, -p log2(p) - (1 - p) log2(1 - p): 0 to 1 bit.

    As Kendall and Gal (2017, arXiv 1703.04977, section 2.1). The mean is that over a scan and its mirror image, or over
    an ensemble (Lakshminarayanan et al., 2017, arXiv 1612.01474): it is large where each says about 0.5, and where one
    is as sure of a lesion as the other is of none.
    """
    return np.clip((entr(lesion) + entr(1 - lesion)) / np.log(2), 0, 1).astype(lesion.dtype)
