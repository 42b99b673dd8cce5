"""What answers say: agreement, divergence, calibration, confusion of a classifier's, and how far any are apart."""

import math

import pytest
import torch

from limbeck.measure import agreement, answer_difference, calibration, confusion, divergence, per_class

STUDENT = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
TEACHER = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.5, 1.0], [0.1, 0.0, 0.0], [-1.0, -2.0, -3.0]])
TARGETS = torch.tensor([0, 1, 1, -100])


def confident(*shares):
    """Logits of two classes whose first has these softmax outputs."""
    p = torch.tensor(shares, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], 1)


def test_agreement_by_hand():
    assert agreement(STUDENT, TEACHER) == 0.5  # 0 and 0, 1 and 2, 0 and 0, 2 and 0
    assert agreement(STUDENT, 5 * STUDENT - 3) == 1


def test_divergence_by_hand():
    taught, shown = confident(0.5, 0.9), confident(0.25, 0.9)
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(shown, taught) == pytest.approx(first / 2)
    back = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(taught, shown) == pytest.approx(back / 2)
    assert divergence(STUDENT, STUDENT + 7) == pytest.approx(0, abs=1e-7)


def test_calibration_by_hand():
    # in fifteenths: (10, 11] holds 0.68 and 0.72, (12, 13] holds 0.82, (14, 15] holds 0.96
    logits = confident(0.68, 0.72, 0.82, 0.96)
    right = torch.tensor([0, 1, 0, 1])  # so 0.68 and 0.82 are right
    by_hand = (2 * abs(0.5 - 0.70) + abs(1 - 0.82) + abs(0 - 0.96)) / 4
    assert calibration(logits, right) == pytest.approx(by_hand)
    assert calibration(logits, right, bins=1) == pytest.approx(abs(0.5 - 0.795))


def test_calibration_of_certainty_joins_the_last_bin():
    """Softmax is exactly 1 there: half of it is wrong, and with the doubts beside it three quarters are right."""
    certain = torch.tensor([[100.0, 0.0], [100.0, 0.0]])
    logits, targets = torch.cat([certain, confident(0.99, 0.99).float()]), torch.tensor([0, 1, 0, 0])
    assert calibration(logits, targets) == pytest.approx(0.995 - 0.75, abs=1e-6)


def test_calibration_reads_logits_that_look_like_shares():
    """These are no softmax outputs, though they lie in [0, 1]."""
    assert calibration(torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == pytest.approx(1 - 1 / (1 + math.exp(-1)))


def test_calibration_of_nothing_known_is_not_a_number():
    assert math.isnan(calibration(torch.tensor([[math.nan, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])))


def test_calibration_in_half_precision_is_that_of_its_logits():
    draw = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(50, 5, generator=draw).half(), torch.randint(5, (50,), generator=draw)
    assert calibration(logits, targets) == calibration(logits.float(), targets)


def test_confusion_and_per_class_by_hand():
    assert confusion(STUDENT, TARGETS).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    shares = per_class(STUDENT, TARGETS)
    assert shares[:2].tolist() == [1, 0.5]
    assert shares[2].isnan()
    change = per_class(STUDENT, TARGETS) - per_class(TEACHER, TARGETS)
    assert change[:2].tolist() == [0, 0.5]


def test_unlabelled_samples_play_no_part():
    known, targets = STUDENT[:3], TARGETS[:3]
    assert calibration(STUDENT, TARGETS) == calibration(known, targets)
    assert torch.equal(confusion(STUDENT, TARGETS), confusion(known, targets))


@pytest.mark.parametrize("measure", [agreement, divergence])
def test_two_networks_must_answer_alike(measure):
    with pytest.raises(ValueError, match=rf"{measure.__name__}.*\(4, 3\) and \(4, 2\)"):
        measure(STUDENT, TEACHER[:, :2])
    with pytest.raises(ValueError, match=r"of a sample at least, got shape \(0, 3\)"):
        measure(STUDENT[:0], TEACHER[:0])
    with pytest.raises(ValueError, match=r"logits \(N, K\).*got shape \(4, 3, 2, 2\)"):
        measure(torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2))
    with pytest.raises(ValueError, match=r"got shape \(4, 1\): one value a sample.*answer_difference"):
        measure(STUDENT[:, :1], TEACHER[:, :1])


def test_the_difference_of_answers_by_hand():
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    assert answer_difference(student, teacher) == pytest.approx(math.sqrt((4 + 9) / 4))
    assert answer_difference(student.half(), 300 + student.half()) == 300  # 300² is beyond float16
    images = torch.zeros(2, 3, 4, 4)
    assert answer_difference(images, images + 0.5) == 0.5


def test_what_has_no_difference():
    with pytest.raises(ValueError, match=r"answer_difference.*\(4, 3\) and \(4, 1\)"):
        answer_difference(STUDENT, TEACHER[:, :1])
    with pytest.raises(ValueError, match="an answer at least"):
        answer_difference(STUDENT[:0], TEACHER[:0])
    with pytest.raises(TypeError, match="got a list of 1 of the teacher"):
        answer_difference(STUDENT, [TEACHER])


@pytest.mark.parametrize("measure", [calibration, confusion, per_class])
@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (STUDENT, TARGETS[:3], r"each of 4 samples, got targets torch.int64 \(3,\)"),
        (STUDENT, TARGETS.float(), "got targets torch.float32"),
        (STUDENT, torch.tensor([0, 1, 3, 2]), r"targets in \[0, 3\) for 3 logits, got 0 to 3"),
        (STUDENT, torch.tensor([0, 1, -1, 2]), "got -1 to 2"),
        (STUDENT, torch.full((4,), -100), "every target is -100"),
        (STUDENT[0], TARGETS, r"got shape \(3,\)"),
        (STUDENT[:, :1], torch.zeros(4), r"got shape \(4, 1\): one value a sample"),  # regression
        (STUDENT, torch.ones(4, 3).long(), r"a class for each of 4 samples, got .* \(4, 3\)"),  # several labels
    ],
)
def test_what_cannot_be_measured(measure, logits, targets, message):
    with pytest.raises(ValueError, match=message):
        measure(logits, targets)
