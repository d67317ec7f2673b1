#!/usr/bin/env bash
# scikit-learn 1.9.1 divides every fit parameter among the folds whose length happens to equal the number of samples, whatever it is.
# Class prototypes (one row a class) given to fit are whole with 30 samples and 20 classes, and cut to the rows of the training fold with 20 samples
# and 20 classes: a method then fits without some of its classes, and nothing is said.
# Remedy: give such things to the constructor.
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q scikit-learn==1.9.1 "numpy>=2,<3"
"$T/env/bin/python" - <<'P'
import sys

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import cross_validate

CLASSES, seen = 20, []


class Nearest(ClassifierMixin, BaseEstimator):
    def fit(self, X, y=None, prototypes=None):
        seen.append(len(prototypes))
        self.classes_, self.prototypes_ = np.arange(len(prototypes)), prototypes
        return self

    def predict(self, X):
        return self.classes_[np.argmax(X @ self.prototypes_.T, axis=1)]


prototypes = np.random.default_rng(0).normal(size=(CLASSES, 8))
for samples in (30, CLASSES):
    y = np.arange(samples) % CLASSES
    scores = cross_validate(Nearest(), prototypes[y], y, cv=[(np.arange(10), np.arange(10, samples))], params={"prototypes": prototypes})
    print(f"{samples} samples, {CLASSES} prototypes: fit saw {seen[-1]}, accuracy {scores['test_score'][0]:.2f}")
sys.exit(seen != [CLASSES, 10])
P
