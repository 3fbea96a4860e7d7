"""The baselines are an honest measure: also where a column has more categories than the trees can hold."""

import numpy as np
import pandas as pd
import pytest

from slml.training.baselines import baselines


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_many_categories_are_learned(task: str) -> None:
    random = np.random.default_rng(0)
    effect = random.normal(0, 3, 600)
    store, size = random.integers(0, 600, 6000), random.normal(0, 1, 6000)
    sales = effect[store] + size + random.normal(0, 0.3, 6000)
    target = {"regression": sales, "binary": sales > 0, "multiclass": np.digitize(sales, (-2, 2))}[task]
    target = target if task == "regression" else target.astype(int)
    frame = pd.DataFrame({"store": [f"s{n}" for n in store], "size": size})
    frame.loc[5999, "store"] = "never seen"
    result = baselines(task, (frame[:5000], target[:5000]), (frame[5000:], target[5000:]))
    for model in ("linear", "hist_gradient_boosting"):
        if task == "regression":
            assert result[model]["rmse"] < 0.6 < 3 < result["constant"]["rmse"]
        else:
            assert result[model]["auc"] > 0.95
