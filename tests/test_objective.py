"""Sources, terms, weights: the equation of a paper."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck import Distill, Loss, M, Objective, S, Source, T, Task, X, Y, on
from limbeck.core.stage import linear
from limbeck.losses import soft_target

SCENE = {
    "student": {"": torch.tensor([1.0, 2.0]), "mid": torch.tensor([3.0, 4.0])},
    "teacher": {"": torch.tensor([1.0, 5.0])},
    "second": {"": torch.tensor([0.0, 0.0])},
    "input": torch.tensor([7.0, 8.0]),
    "target": torch.tensor([1.0, 1.0]),
}


def never(*_):
    raise AssertionError("a term of weight 0 was computed")


def values(objective, scene=SCENE):
    return {name: loss.value.item() for name, loss in objective(scene).items()}


@pytest.mark.parametrize(
    ("source", "role", "path"), [(S, "student", ""), (S["mid"], "student", "mid"), (T, "teacher", ""), (X, "input", "")]
)
def test_source_reads_its_place(source, role, path):
    expected = SCENE[role][path] if isinstance(SCENE[role], dict) else SCENE[role]
    assert source == Source(role, path)
    assert source.read(SCENE) is expected


def test_source_of_another_role_keeps_path_and_steps():
    source = T["mid"].via(torch.square).of("student")
    assert torch.equal(source.read(SCENE), torch.tensor([9.0, 16.0]))


def test_via_runs_left_to_right_and_does_not_change_the_source():
    place = S["mid"]
    seen = place.via(lambda x: x + 1, torch.neg).via(lambda x: 10 * x)
    assert torch.equal(seen.read(SCENE), torch.tensor([-40.0, -50.0]))
    assert place.steps == ()


def test_unknown_role_and_layer_of_a_plain_value():
    with pytest.raises(KeyError, match=r"nothing plays the role 'third'.*'second'"):
        T.of("third").read(SCENE)
    with pytest.raises(KeyError, match="'target' is a plain value and has no layer 'mid'"):
        Y["mid"].read(SCENE)


def test_on_binds_sources_and_options_in_order():
    objective = on(F.smooth_l1_loss, S, T, beta=2.0)
    assert values(objective) == {"smooth_l1_loss": pytest.approx((0 + 9 / 4 - 0) / 2 - (9 / 4 - 2.0) / 2)}


def test_names():
    class Learned(nn.Module):
        def forward(self, x):
            return x.mean()

    objective = on(Learned(), S) + on(torch.mean, S, name="mine") + on(F.mse_loss, S, T)
    assert list(objective(SCENE)) == ["learned", "mine", "mse_loss"]


def test_equal_names_are_told_apart():
    a, b, c = on(torch.mean, S, name="a"), on(torch.mean, T, name="a"), on(torch.mean, S["mid"], name="a")
    assert values(a + b + c) == {"a.1": 1.5, "a.2": 3.0, "a.3": 3.5}
    assert values((a + b) + 2 * a) == {"a.1": 1.5, "a.2": 3.0, "a.3": 1.5}


def test_a_number_never_hides_a_term_of_that_name():
    a, b, c = on(torch.mean, S, name="a"), on(torch.mean, T, name="a"), on(torch.mean, S["mid"], name="a.1")
    joined = a + b + c
    assert sorted(values(joined).values()) == [1.5, 3.0, 3.5]


def test_weights_multiply():
    term = on(torch.mean, S)
    loss = (2 * (3 * term))(SCENE)["mean"]
    assert loss == Loss(loss.value, 6.0)
    assert loss.weighted.item() == pytest.approx(9.0)
    assert term(SCENE)["mean"].weight == 1.0


def test_a_weight_distributes_over_a_sum():
    joined = 2 * (on(torch.mean, S, name="a") + 3 * on(torch.mean, T, name="b"))
    assert {name: loss.weight for name, loss in joined(SCENE).items()} == {"a": 2.0, "b": 6.0}


def test_a_weight_stands_on_either_side_and_divides():
    term = on(torch.mean, S)
    assert [weighed.weights for weighed in (term * 0.5, 0.5 * term, term / 2)] == [[0.5]] * 3
    halving = (linear(4.0, 2.0) * term / linear(1.0, 2.0)).weights[0]
    assert [halving(0.0), halving(1.0)] == [4.0, 1.0]
    assert (term * linear(4.0, 2.0)).weights[0](0.5) == 3.0
    assert (-term).weights == [-1.0]
    for wrong in (lambda: term * term, lambda: term / term, lambda: "half" * term, lambda: term * None):
        with pytest.raises(
            TypeError, match=r"the weight of an objective must be a function, lambda progress: .* or a num"
        ):
            wrong()
    with pytest.raises(TypeError, match="unsupported operand"):
        2 / term
    with pytest.raises(TypeError, match=r"is called with 1 argument, lambda progress: .*'target'"):
        F.mse_loss * term
    with pytest.raises(ValueError, match="cannot be divided by 0"):
        term / 0


def test_what_is_no_sum_of_objectives_says_how_to_write_it():
    term = on(torch.mean, S)
    for wrong in (lambda: term - term, lambda: 1 - term):
        with pytest.raises(TypeError, match=r"objectives are added, each with its weight, a \+ 0\.5 \* b"):
            wrong()
    for other in (1, F.mse_loss):
        with pytest.raises(TypeError, match=r"an objective is added to an objective, got .*limbeck\.on\(loss"):
            term + other


def test_an_objective_is_of_a_function_and_places():
    with pytest.raises(TypeError, match=r"the loss must be a function of tensors, .* got the string 'mse'"):
        on("mse", S)
    with pytest.raises(TypeError, match=r"or a module that is made, .* got the class MSELoss"):
        on(torch.nn.MSELoss, S, T)
    with pytest.raises(TypeError, match=r"got the string 'fc': limbeck\.S\['fc'\] of the student"):
        on(F.mse_loss, "fc", T)
    with pytest.raises(TypeError, match=r"the loss compares places, got Linear: limbeck\.S"):
        on(F.mse_loss, torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 4.0), (0.5, 2.5), (1.0, 1.0)])
def test_scheduled_weight(progress, weight):
    objective = linear(4.0, 1.0) * on(torch.mean, S)
    assert objective(SCENE | {"progress": progress})["mean"].weight == weight


def test_schedules_multiply_with_numbers_and_schedules():
    objective = linear(0.0, 2.0) * (3 * (linear(1.0, 0.5) * on(torch.mean, S)))
    assert objective(SCENE | {"progress": 0.5})["mean"].weight == pytest.approx(1.0 * 3 * 0.75)


def test_weight_zero_is_neither_computed_nor_recorded():
    objective = on(torch.mean, S["mid"]) + 0 * on(never, T["deep"], Y) + 0.0 * (2 * on(never, T.of("second")))
    assert list(objective(SCENE)) == ["mean"]
    assert objective.roles() == {"student"}
    assert objective.paths("teacher") == set()
    assert objective.paths("student") == {"mid"}


def test_scheduled_weight_that_is_zero_now_is_not_computed_but_recorded():
    objective = linear(0.0, 1.0) * on(never, T["deep"]) + on(torch.mean, S)
    assert list(objective(SCENE)) == ["mean"]
    assert objective.paths("teacher") == {"deep"}
    with pytest.raises(AssertionError, match="weight 0"):
        objective(SCENE | {"progress": 1.0, "teacher": {"deep": torch.ones(2)}})


def test_sum_joins_a_list():
    joined = sum([on(torch.mean, S), on(F.mse_loss, S, T)])
    assert isinstance(joined, Objective)
    assert list(joined(SCENE)) == ["mean", "mse_loss"]
    with pytest.raises(TypeError):
        1 + on(torch.mean, S)


def test_a_term_is_a_scalar():
    with pytest.raises(ValueError, match=r"the term 'square' must be a scalar, got shape \(2,\)"):
        on(torch.square, S)(SCENE)


def test_adapters_and_learning_losses_are_parameters_once():
    adapter, loss = nn.Linear(2, 2), nn.Bilinear(2, 2, 1)
    one = on(lambda a, b: loss(a, b).sum(), S.via(adapter), T.via(adapter), name="pair")
    assert {id(p) for p in one.parameters()} == {id(p) for p in adapter.parameters()}
    assert len(list((one + 2 * one).parameters())) == 2

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * x.mean()

    assert len(list(on(Learned(), S).parameters())) == 1


def test_objective_state_dict_round_trip():
    def build():
        return on(torch.mean, S.via(nn.Linear(2, 2))) + 0 * on(torch.mean, S.via(nn.Linear(2, 3)), name="off")

    a, b = build(), build()
    b.load_state_dict(a.state_dict())
    assert values(a) == values(b)


def test_distill_refuses_roles_nobody_plays():
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"reads \['second'\]"):
        Distill(net, net, on(F.mse_loss, S, T.of("second")))
    with pytest.raises(ValueError, match=r"reads \['teacher'\]"):
        Distill(net, None, on(F.mse_loss, S, T))


def test_distill_refuses_a_teacher_in_another_role():
    with pytest.raises(ValueError, match="cannot play the role 'student'"):
        Distill(nn.Linear(2, 2), {"student": nn.Linear(2, 2)}, on(torch.mean, S))


def masked_error(student, teacher, mask=None, power=2.0):
    errors = (student - teacher).abs() ** power
    return errors.mean() if mask is None else errors[mask].mean()


def test_an_option_may_be_a_place():
    objective = on(masked_error, S, T, mask=M, power=1.0)
    mask = torch.tensor([False, True])
    assert values(objective, {**SCENE, "mask": mask}) == {"masked_error": 3.0}
    assert values(objective, {**SCENE, "mask": None}) == {"masked_error": 1.5}  # None: all positions count
    assert objective.roles() == {"student", "teacher", "mask"}
    (term,) = objective.terms
    assert term.sources == (S, T, M)
    assert term.options == {"power": 1.0}
    assert term.placed == {"mask": M}


def test_any_place_may_be_an_option():
    adapter = nn.Linear(2, 2)
    objective = on(masked_error, S, teacher=T["mid"].via(adapter), mask=X.via(lambda x: x > 7))
    scene = {**SCENE, "teacher": {"mid": SCENE["student"]["mid"]}}
    expected = (SCENE["student"][""] - adapter(SCENE["student"]["mid"])).square()[1]
    assert torch.equal(objective(scene)["masked_error"].value, expected)
    assert objective.paths("teacher") == {"mid"}  # it is recorded
    assert [id(p) for p in objective.parameters()] == [id(p) for p in adapter.parameters()]  # and trained
    assert objective.roles() == {"student", "teacher", "input"}


def test_an_entry_of_inputs_is_a_place():
    x = {"words": torch.tensor([1, 2]), "seen": torch.tensor([True, False])}
    assert X["seen"].read({"input": x}) is x["seen"]


def test_a_term_of_other_values():
    (term,) = on(masked_error, S, T, mask=M).terms
    scene = {**SCENE, "mask": torch.tensor([True, False])}
    assert term.of([torch.tensor([5.0, 0.0]), torch.tensor([2.0, 0.0])], scene).item() == 9.0
    assert term(scene).item() == 0.0


def test_the_mask_is_the_tasks():
    torch.manual_seed(0)
    student, teacher, x = nn.Linear(3, 4), nn.Linear(3, 4), torch.randn(5, 2, 3)
    y = torch.tensor([[0, 1], [-100, 2], [3, -100], [-100, -100], [1, 1]])
    task = Task(mask=lambda batch: batch[1] != -100)
    method = Distill(student, teacher, on(soft_target, S, T, temperature=2.0, mask=M), task)
    (loss,) = method.objective(method.scene((x, y))).values()
    rows = x[y != -100]
    torch.testing.assert_close(loss.value, soft_target(student(rows), teacher(rows), 2.0))
    assert "mask" not in Distill(student, teacher, on(soft_target, S, T), task).scene((x, y))  # nobody reads it
    assert Distill(student, teacher, on(soft_target, S, T, mask=M)).scene((x, y))["mask"] is None


def through(value, head):
    return head(value).square().mean()


def test_a_module_among_the_options_is_the_students_own():
    """A deep copy keeps it tied to the copied student, and it is registered once: DDP would not see it twice."""
    student = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    method = Distill(student, None, on(through, S["0"], head=student[1]))
    assert [id(module) for module in method.modules()].count(id(student[1])) == 1
    assert list(method.state_dict()) == ["student.0.weight", "student.0.bias", "student.1.weight", "student.1.bias"]
    assert not list(method.objective.parameters())
    twin = copy.deepcopy(method)
    (term,) = twin.objective.terms
    assert term.options["head"] is twin.student[1]
    assert term.options["head"] is not student[1]
