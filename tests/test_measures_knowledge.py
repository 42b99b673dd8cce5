"""Signs of neurons and gradients at inputs, by hand."""

import math

import pytest
import torch
from torch import nn

from limbeck.measure import gradient_cosine, sign_agreement
from limbeck.tasks.classification import cross_entropy


def linear(*rows, bias=None):
    layer = nn.Linear(len(rows[0]), len(rows))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
        layer.bias.copy_(torch.tensor(bias or [0.0] * len(rows)))
    return layer


BATCHES = [
    (torch.tensor([[1.0, 1.0], [-1.0, 2.0]]), torch.tensor([0, 1])),
    (torch.tensor([[3.0, -1.0]]), torch.tensor([-100])),
]


def test_signs_agree_by_hand():
    student = nn.Sequential(linear([1.0, 0.0], [0.0, 1.0]), nn.ReLU(), linear([1.0, 0.0], [0.0, 1.0]))
    teacher = nn.Sequential(linear([2.0, 0.0], [1.0, -1.0], bias=[0.0, 0.5]), nn.ReLU(), nn.Dropout())
    # the student's are (+ +) (− +) (+ −), the teacher's (2 .5) (−2 −2.5) (6 4.5): 2, 1 and 1 of two agree
    pairs = [("0", "0"), ("1", "0"), ("0", "1")]
    assert sign_agreement(student, teacher, BATCHES, pairs) == dict.fromkeys(pairs, 4 / 6)
    assert teacher.training
    assert sign_agreement(student, student, BATCHES, [("0", "0")]) == {("0", "0"): 1.0}
    assert sign_agreement(student, teacher, BATCHES, []) == {}


def test_signs_need_equal_widths_and_data():
    student, teacher = (nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2)) for width in (3, 4))
    with pytest.raises(
        ValueError, match=r"signs of '0' and '0': .* \(2, 3\) and \(2, 4\): neurons are compared one by one"
    ):
        sign_agreement(student, teacher, BATCHES, [("0", "0")])
    for measured in (
        lambda: sign_agreement(student, teacher, [], [("0", "0")]),
        lambda: gradient_cosine(student, teacher, []),
    ):
        with pytest.raises(ValueError, match="no batch"):
            measured()


def test_gradients_by_hand():
    # of z = W x, ∂CE/∂x = Wᵀ (p − y): along w_1 − w_0 for two classes, away from the label's
    student, teacher = linear([0.0, 0.0], [1.0, 0.0]), linear([0.0, 0.0], [3.0, 4.0])
    assert gradient_cosine(student, teacher, BATCHES) == pytest.approx(0.6)
    assert gradient_cosine(student, linear([1.0, 0.0], [0.0, 0.0]), BATCHES) == pytest.approx(-1)
    assert gradient_cosine(teacher, teacher, BATCHES) == pytest.approx(1)
    assert student.weight.grad is None
    assert student.weight.requires_grad
    # gradients far below the square root of the smallest number still have a direction
    tiny = linear([0.0, 0.0], [3e-30, 4e-30])
    with torch.no_grad():
        assert gradient_cosine(student, tiny, BATCHES) == pytest.approx(0.6)


def test_each_sample_counts_once_whatever_its_loss():
    student = nn.Sequential(linear([1.0, 0.0], [0.0, 1.0]), nn.Tanh(), linear([0.0, 0.0], [1.0, 2.0]))
    teacher = linear([0.0, 0.0], [1.0, 1.0])
    inputs, targets = torch.tensor([[0.5, -1.0], [2.0, 0.1], [0.0, 0.0]]), torch.tensor([0, 1, 1])
    slopes = []
    for net in (student, teacher):
        for one in range(3):
            x = inputs[one : one + 1].clone().requires_grad_()
            cross_entropy(net(x), targets[one : one + 1]).backward()
            slopes.append(x.grad[0])
    expected = sum(float(torch.cosine_similarity(s, t, dim=0)) for s, t in zip(slopes[:3], slopes[3:], strict=True)) / 3
    found = [
        gradient_cosine(student, teacher, [(inputs[a], targets[a]) for a in cut])
        for cut in ([[0, 1, 2]], [[0], [1, 2]])
    ]
    assert found == pytest.approx([expected, expected])


def test_without_a_gradient_there_is_no_cosine():
    net = linear([0.0, 0.0], [1.0, 1.0])
    assert math.isnan(gradient_cosine(net, linear([0.0, 0.0], [0.0, 0.0]), BATCHES))
    assert math.isnan(gradient_cosine(net, net, BATCHES[1:]))
    with pytest.raises(TypeError, match=r"one tensor of real numbers, got a tensor of torch.int64"):
        gradient_cosine(net, net, [(torch.ones(1, 2, dtype=torch.long), torch.tensor([0]))])
