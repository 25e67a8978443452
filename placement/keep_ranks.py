"""Which rank takes which set of experts of a new plan, so that the fewest move.

Balancers number ranks as they fill them, so that a new plan moves nearly every expert even where it
changes little. In each layer, ranks of one domain with equally many slots may trade what they hold:
loads stay those of the plan, and copies too but for the few tokens whose own rank serves them.

Axes: L MoE layer, G rank of an EP group, P slot.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]


def keep_ranks(before_LGP: Int32, after_LGP: Int32, *, domain_G: Int32, slots_G: Int32) -> Int32:
    """Give the new plan with its ranks' sets traded so that most experts stay where they are (an assignment a layer).

    Parameters
    ----------
    domain_G, slots_G
        Domain and slots of each rank: only ranks that are alike in both trade.
    """
    from scipy.optimize import linear_sum_assignment  # .4 s, and few commands need it

    kept_LGP = after_LGP.copy()
    alike_GG = (domain_G[:, None] == domain_G) & (slots_G[:, None] == slots_G)
    for before_GP, after_GP, kept_GP in zip(before_LGP, after_LGP, kept_LGP, strict=True):
        experts = int(max(before_GP.max(), after_GP.max())) + 1
        same_GG = _held(before_GP, experts) @ _held(after_GP, experts).T
        # A pair that must not trade costs more than all that could be kept, so that none is taken.
        value_GG = np.where(alike_GG, same_GG, -before_LGP[0].size - 1)
        kept_GP[:] = after_GP[linear_sum_assignment(value_GG, maximize=True)[1]]
    return kept_LGP


def _held(slots_GP: Int32, experts: int) -> npt.NDArray[np.int64]:
    """1 where a rank holds an expert: [G, E]; the last column is for empty slots, and 0."""
    held_GE = np.zeros((len(slots_GP), experts + 1), np.int64)
    np.put_along_axis(held_GE, slots_GP.astype(np.int64), 1, axis=1)
    held_GE[:, -1] = 0
    return held_GE
