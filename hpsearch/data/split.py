"""The fixed stratified split: the same rows in every run, on every machine."""

import numpy as np

from hpsearch.data.images import Labels

VALIDATION_SHARE = 0.1  # of the training part
VALIDATION_SEED = 0  # changing it changes every result: never do
SEALED_SEED = 1  # for data sets without an official test split


def split_rows(labels: Labels, share: float, seed: int) -> tuple[Labels, Labels]:
    """Rows (kept, set aside), each in ascending order; of every class `share`, at least one, is set aside.

    Class by class, as scikit-learn's `stratify` may leave a small class without any row set aside. Classes need two
    rows or more.
    """
    from sklearn.model_selection import train_test_split  # slow to import; only needed when a cache is built

    kept, aside = [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        num_aside = max(1, round(share * len(rows)))
        first, second = train_test_split(rows, test_size=num_aside, random_state=seed)
        kept.append(first)
        aside.append(second)
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(aside))
