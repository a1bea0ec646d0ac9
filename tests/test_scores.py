"""Scores against scikit-learn and against hand-computed values."""

import pytest
import sklearn.metrics
import torch

from dmformer.tasks.classification.metrics import score


def make(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(k)
    targets = torch.randint(k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator) + 1.5 * torch.nn.functional.one_hot(targets, k)
    return logits.softmax(1), targets


@pytest.mark.parametrize("k", [2, 7])
def test_scores_equal_scikit_learn(k):
    probabilities, targets = make(300, k)
    scores = score(probabilities, targets, [str(i) for i in range(k)])
    t, p = targets.numpy(), probabilities.argmax(1).numpy()
    assert scores.top1.value == pytest.approx(sklearn.metrics.accuracy_score(t, p))
    assert scores.balanced_accuracy.value == pytest.approx(sklearn.metrics.balanced_accuracy_score(t, p), abs=1e-6)
    assert scores.macro_f1.value == pytest.approx(sklearn.metrics.f1_score(t, p, average="macro"), abs=1e-6)
    assert scores.confusion == sklearn.metrics.confusion_matrix(t, p).tolist()
    x = probabilities.numpy()
    auroc = sklearn.metrics.roc_auc_score(t, x[:, 1] if k == 2 else x, multi_class="ovr")
    assert scores.auroc == pytest.approx(auroc, abs=1e-6)
    if k == 7:
        top5 = sklearn.metrics.top_k_accuracy_score(t, x, k=5)
        assert scores.top5.value == pytest.approx(top5)
    else:
        assert scores.top5 is None
    for figure in (scores.top1, scores.balanced_accuracy, scores.macro_f1):
        assert figure.low < figure.value < figure.high


def test_interval_by_hand():
    probabilities = torch.tensor([[0.9, 0.1]] * 90 + [[0.1, 0.9]] * 10)
    scores = score(probabilities, torch.zeros(100, dtype=torch.long), ["a", "b"])
    assert scores.top1.value == pytest.approx(0.9)
    assert scores.top1.low == pytest.approx(0.8256, abs=1e-4)  # Wilson's interval for 90 of 100
    assert scores.top1.high == pytest.approx(0.9448, abs=1e-4)
    assert scores.auroc is None  # there is no image of b
    assert scores.balanced_accuracy.value == pytest.approx(0.9)  # over the classes that have images
    assert [c.count for c in scores.classes] == [100, 0]
    assert scores.calibration_error == pytest.approx(0, abs=1e-5)  # all have confidence 0.9, and 0.9 are correct


def test_nothing_to_score():
    with pytest.raises(ValueError, match="no image"):
        score(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), ["a", "b"])
