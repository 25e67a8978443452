"""Which rows of a table set parameters, and how parameters are fitted on them.

At most 2 % of a table's rows, drawn with a seed; errors are reckoned on rows of other shapes than
those.

Axes: R row, P parameter.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


MOST_SHARE = 0.02  # of a table's rows


def draw_rows(rows: int, *, seed: int, most: int = 700) -> Bool:
    """Mark rows at random: 2 % of them, at most `most`; the same ones for the same seed."""
    marked = np.zeros(rows, bool)
    drawn = np.random.default_rng(seed).choice(rows, min(most, int(rows * MOST_SHARE)), replace=False)
    marked[drawn] = True
    return marked


def drawn_rows(keys: Sequence[npt.ArrayLike], *, name: str, seed: int, count: int | None = None) -> Int:
    """Draw the rows of a table: sorted by keys, the first key first, at even steps from a random start.

    Even steps give each kind of row its share. The start depends on the seed and the table's name.
    `count`: how many (of some of a table's rows, for which the share of all is asked); None: the
    most that may be.
    """
    order = np.lexsort([np.asarray(key) for key in reversed(keys)])
    count = int(MOST_SHARE * len(order)) if count is None else count
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    places = (np.arange(count) + random.random()) * len(order) / max(count, 1)
    drawn: Int = order[places.astype(np.int64)]
    return np.sort(drawn)


def unseen_rows(shapes_R: Sequence[object], drawn_R: Int) -> Bool:
    """Say which rows have another shape than all that were drawn: repeats of those are not unseen."""
    seen = {shapes_R[row] for row in drawn_R.tolist()}
    return np.array([shape not in seen for shape in shapes_R], bool)


def fit_logarithms(predict: Callable[[Float], Float], measured_R: Float, start_P: Float, spread_P: Float) -> Float:
    """Fit positive parameters by least squares of logarithms, with a prior: log-normal about where they start.

    `spread_P` is the prior's, in logarithms: small where another GPU's fit is trusted, large where
    nothing is known. Outliers weigh less (soft L1, from errors of 10 % on).
    """
    noise = 0.1

    def residuals(step_P: Float) -> Float:
        error_R = np.log(predict(start_P * np.exp(step_P)) / measured_R) / noise
        robust_R = np.sign(error_R) * np.sqrt(2 * (np.sqrt(1 + error_R**2) - 1))
        return np.concatenate([robust_R, step_P / spread_P])

    found = least_squares(residuals, np.zeros(len(start_P)), method="trf", max_nfev=200)
    fitted: Float = start_P * np.exp(found.x)
    return fitted
