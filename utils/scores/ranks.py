"""Models ranked as challenges do: by scan and score, these ranks averaged, and how sure the order of the models is.

"Rank then aggregate" is how ISLES and BraTS rank; Maier-Hein et al. (2018, 10.1038/s41467-018-07619-7) compare it with
other rules, and Wiesenfarth et al. (2021, 10.1038/s41598-021-82017-6) have the bootstrap.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, rankdata

from utils.scores.intervals import BATCH, RESAMPLES

ISLES26 = ("dice", "lesion_f1_isles26", "pr_auc", "volume_difference", "lesion_count_difference")
LOWER_IS_BETTER = re.compile(r"hd95|assd|proposed_fraction|.*_difference|false_lesions.*")
DECIMALS = 9  # to which mean ranks are compared: those of a tie differ by rounding


@dataclass(frozen=True)
class Ranking:
    """N models from the best, which has the lowest mean rank; ranks begin at 1, and those of a tie are their mean.

    by_score: (N, scores) mean ranks over the scans; NaN of a score that no scan has.
    mean_ranks: (N,) means over the scans of the mean over a scan's scores.
    places: (N,) ranks of these.
    shares: (N, N), of the resamples, in which a model (row) holds a place (column); a tie is shared. NaN with one scan.
    order_share: of the resamples, in which all models hold their `places`; NaN with one scan.
    scans: number of them that have a score to rank by.
    """

    by_score: np.ndarray
    mean_ranks: np.ndarray
    places: np.ndarray
    shares: np.ndarray
    order_share: float
    scans: int


def rank_scans(tables: Sequence[pd.DataFrame]) -> np.ndarray:
    """Ranks (N, scans, scores) of N models in each scan by each score; the tables have the same rows and columns.

    A model without a score that another one has, say a distance where it predicts nothing, is ranked last, as missing
    results of a challenge are. A score that none of them has in a scan is not ranked there: NaN.
    """
    signs = [1 if LOWER_IS_BETTER.fullmatch(str(score)) else -1 for score in tables[0]]
    values = np.stack([table.to_numpy(float) * signs for table in tables])
    missing = np.isnan(values)
    ranks = rankdata(np.where(missing, np.inf, values), axis=0)
    return np.where(missing.all(0), np.nan, ranks)


def rank_models(ranks: np.ndarray, seed: int) -> Ranking:
    """The order of the models by their ranks (N, scans, scores), and how sure it is by the bootstrap over scans."""
    scored, scanned = (~np.isnan(ranks[0]).all(axis) for axis in (0, 1))
    by_score = np.full((len(ranks), ranks.shape[2]), np.nan)
    by_score[:, scored] = np.nanmean(ranks[..., scored], axis=1)
    by_scan = np.nanmean(ranks[:, scanned], axis=2)
    mean_ranks = _mean_ranks(*by_scan)
    places, n = rankdata(mean_ranks), len(ranks)
    shares, order_share = np.full((n, n), np.nan), np.nan
    if by_scan.shape[1] > 1:
        drawn = bootstrap(
            tuple(by_scan), _mean_ranks, paired=True, n_resamples=RESAMPLES, batch=BATCH, method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution  # fmt: skip
        first, last = (rankdata(drawn, method, axis=0) for method in ("min", "max"))
        held = [(first <= place) & (place <= last) for place in range(1, n + 1)]
        shares = np.stack([(holds / (last - first + 1)).mean(-1) for holds in held], axis=1)
        order_share = float((rankdata(drawn, axis=0) == places[:, None]).all(0).mean())
    return Ranking(by_score, mean_ranks, places, shares, order_share, by_scan.shape[1])


def _mean_ranks(*by_scan: np.ndarray, axis: int = -1) -> np.ndarray:
    scans = by_scan[0].shape[axis] or np.nan
    return np.stack([ranks.sum(axis) / scans for ranks in by_scan]).round(DECIMALS)
