"""Labels from logits."""

from __future__ import annotations

import numpy as np

from cellxpert.tasks.annotate import annotate

CLASSES = ("A", "B/C", "é")


def test_labels_are_the_most_probable_and_unknown_stays_unknown() -> None:
    logits = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    unknown = np.zeros(9, bool)
    unknown[4] = True
    result = annotate(logits, classes=CLASSES, unknown=unknown, unlabeled_category="?")
    exponentials = np.exp(logits.astype(np.float64))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert np.allclose(result.probabilities, expected, atol=1e-6)
    assert result.probabilities.dtype == np.float32
    assert np.allclose(result.probabilities.sum(axis=1), 1, atol=1e-6)
    known = [i for i in range(9) if i != 4]
    assert [result.labels[i] for i in known] == [CLASSES[expected[i].argmax()] for i in known]
    assert np.allclose(result.confidence[known], expected.max(axis=1)[known], atol=1e-6)
    assert (result.labels[4], result.confidence[4]) == ("?", 0)


def test_probabilities_do_not_overflow() -> None:
    logits = np.array([[1e4, -1e4, 0.0]], np.float32)
    result = annotate(logits, classes=CLASSES, unknown=np.zeros(1, bool), unlabeled_category="?")
    assert result.probabilities.tolist() == [[1, 0, 0]]
