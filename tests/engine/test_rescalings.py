"""How often an online softmax can rescale a weight: by every logit that may lie above it, counted by the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lla_spec.evaluating.contracts import contract
from lla_spec.evaluating.sharp import weights

ANY_NUMBER_OF_BLOCKS = contract("fused", "fp32")
LOGITS = st.lists(st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=9)


@pytest.mark.parametrize("pairs", [weights._PAIRS, 0], ids=["each with each", "sorted"])
@given(logits=LOGITS, errors=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=9, max_size=9), exact=st.booleans())
def test_counts_the_logits_that_may_lie_above(pairs, logits, errors, exact):
    x, e = np.array([logits, logits[::-1]]), np.array(errors[: len(logits)])
    lower, upper = (x, x) if exact else (x - e, x + e)
    live = x > -np.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_PAIRS", pairs)
        found = weights._rises(lower, upper, live, ANY_NUMBER_OF_BLOCKS)
    for row, j in np.ndindex(x.shape):
        above = [i for i in range(x.shape[1]) if i != j and live[row, i] and upper[row, i] > lower[row, j]]
        assert found[row, j] == (len(above) if live[row, j] else 0)
