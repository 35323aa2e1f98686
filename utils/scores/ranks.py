"""Models ranked as challenges do: by scan and score, these ranks averaged, and how sure the order of the models is.

"Rank then aggregate" is how ISLES and BraTS rank; Maier-Hein et al. (2018, 10.1038/s41467-018-07619-7) compare it with
other rules, and Wiesenfarth et al. (2021, 10.1038/s41598-021-82017-6) have the bootstrap.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, rankdata

from utils.scores.intervals import BATCH, RESAMPLES

ISLES26 = ("dice", "lesion_f1_isles26", "pr_auc", "volume_difference", "lesion_count_difference")
LOWER_IS_BETTER = re.compile(r"hd95|assd|proposed_fraction|.*_difference|false_lesions.*")
DECIMALS = 9  # to which mean ranks are compared: those of a tie differ by rounding


def rank_scans(tables: Sequence[pd.DataFrame]) -> np.ndarray:
    """Ranks (N, scans, scores), from 1, of N models in each scan by each score; tables have the same rows and columns.

    A tie gets the mean of its ranks. A model without a score that another one has, say a distance where it predicts
    nothing, is ranked last, as missing results of a challenge are; a score that none has in a scan is NaN there.
    """
    signs = [1 if LOWER_IS_BETTER.fullmatch(str(score)) else -1 for score in tables[0]]
    values = np.stack([table.to_numpy(float) * signs for table in tables])
    missing = np.isnan(values)
    return np.where(missing.all(0), np.nan, rankdata(np.where(missing, np.inf, values), axis=0))


def rank_models(models: Mapping[str, pd.DataFrame], seed: int) -> tuple[pd.DataFrame, float]:
    """The order of models by the mean over scans of their mean rank over the scores of a scan.

    Returns:
        A row for each, the best first, in the columns of docs/outputs.md; and the share of the bootstrap resamples of
        the scans in which the models come in just this order, NaN with fewer than two scans.
    """
    ranks = {name: pd.DataFrame(own) for name, own in zip(models, rank_scans(list(models.values())), strict=True)}
    by_scan = pd.DataFrame({name: own.mean(axis=1) for name, own in ranks.items()}).dropna()
    means = by_scan.mean().round(DECIMALS).sort_values(kind="stable")
    table = pd.DataFrame({"place": means.rank(), "mean_rank": means, "scans": len(by_scan)})
    drawn = np.full((len(means), 1), np.nan)
    if len(by_scan) > 1:
        samples = tuple(by_scan[means.index].to_numpy().T)
        rng = np.random.default_rng(seed)
        drawn = bootstrap(
            samples, _mean_ranks, paired=True, n_resamples=RESAMPLES, batch=BATCH, method="percentile", rng=rng
        ).bootstrap_distribution
    first, last = (rankdata(drawn, method, axis=0) for method in ("min", "max"))
    for place in range(1, len(means) + 1):  # models of a tie share its places
        held = (first <= place) & (place <= last)
        table[f"share_place_{place}"] = (held / (last - first + 1)).mean(axis=1)
    for i, score in enumerate(next(iter(models.values()))):
        table[f"rank_{score}"] = {name: own[i].mean() for name, own in ranks.items()}
    in_order = (np.diff(drawn, axis=0) > 0).all(0).mean() if len(by_scan) > 1 else np.nan
    return table.rename_axis("model").reset_index(), float(in_order)


def _mean_ranks(*by_scan: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.stack([ranks.mean(axis) for ranks in by_scan]).round(DECIMALS)
