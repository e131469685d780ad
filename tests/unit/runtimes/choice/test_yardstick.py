"""What accuracies are held to: the floor from the fleet, and the reference that this board evaluated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.policy import Policy
from regatta_protocol.values import Accuracy
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.choice.paired import RightAnswers, right_answers
from regatta_runtimes.choice.yardstick import Floor, Yardstick, accuracy_floor

FLOAT, INT8, TPU = "litert/float/none/t1", "litert/int8/xnnpack/t1", "litert/tpu/edgetpu/t1"
FLOOR = Floor(0.90, 100)


def rights(correct: int, total: int = 100, available: int = 100) -> RightAnswers:
    """Return answers of which the first `correct` are right."""
    return right_answers([index < correct for index in range(total)], available)


def yardstick(answers: dict[str, RightAnswers], *, favored: str = "", floor: Floor | None = None) -> Yardstick:
    found = Yardstick(floor, Policy(max_accuracy_drop=0.02), frozenset([favored] if favored else []))
    for text, given_answers in answers.items():
        found.add(parse_candidate_id(text), given_answers)
    return found


@pytest.mark.parametrize(
    ("answers", "favored", "floor", "reference"),
    [
        pytest.param({FLOAT: rights(95), INT8: rights(97)}, "", None, INT8, id="the most accurate"),
        pytest.param({FLOAT: rights(95), INT8: rights(97)}, "float", None, FLOAT, id="the fleet's best variant"),
        pytest.param({FLOAT: rights(85), INT8: rights(97)}, "float", FLOOR, INT8, id="which is damaged here"),
        pytest.param({INT8: rights(97)}, "float", None, INT8, id="which could not be evaluated"),
        pytest.param({FLOAT: rights(95), TPU: rights(99)}, "", None, FLOAT, id="an accelerator is none"),
        pytest.param({TPU: rights(99)}, "", None, None, id="only an accelerator"),
        pytest.param({FLOAT: rights(5, 5), INT8: rights(97)}, "", None, INT8, id="a whole one before one cut short"),
        pytest.param({FLOAT: rights(95), "tflite/float/none/t1": rights(95)}, "", None, FLOAT, id="the simplest"),
        pytest.param({}, "float", FLOOR, None, id="nothing evaluated"),
    ],
)
def test_the_reference(
    answers: dict[str, RightAnswers], favored: str, floor: Floor | None, reference: str | None
) -> None:
    """Each clause of rule 2, one line each."""
    found = yardstick(answers, favored=favored, floor=floor).reference()

    assert (None if found is None else found.id) == reference


def test_a_candidate_that_loses_too_much_is_out_with_the_figures() -> None:
    """The difference, its interval, the samples, the reference and what was allowed."""
    found = yardstick({FLOAT: rights(95), INT8: rights(88)})

    reason = found.refuses(parse_candidate_id(INT8))

    assert reason is not None
    assert reason.startswith("it loses 7.0 points of accuracy against litert/float/none/t1 (95 % interval 3.")
    assert "100 paired samples), and the policy allows 2" in reason
    assert found.refuses(parse_candidate_id(FLOAT)) is None


def test_threads_share_an_evaluation_and_the_reference_loses_nothing() -> None:
    """Kernels only split their work by threads; the reference's difference with itself is 0 for sure."""
    found = yardstick({FLOAT: rights(95)})

    drop = found.drop(parse_candidate_id("litert/float/none/t4"))

    assert drop is not None
    assert (drop.reference, drop.drop, drop.low, drop.high) == (FLOAT, 0, 0, 0)
    assert found.drop(parse_candidate_id(INT8)) is None


def test_an_evaluation_cut_short_is_out_only_beyond_chance() -> None:
    """One of 20 lost may be chance; ten of 20 are not."""
    one = yardstick({FLOAT: rights(20, 20), INT8: rights(19, 20)})
    ten = yardstick({FLOAT: rights(20, 20), INT8: rights(10, 20)})

    assert one.refuses(parse_candidate_id(INT8)) is None
    assert ten.refuses(parse_candidate_id(INT8)) is not None


def test_the_floor_is_under_the_best_variant() -> None:
    """Best fleet accuracy less the allowed drop; none measured, no floor."""
    fleet = [Accuracy(correct=95, total=100), None, Accuracy(correct=97, total=100)]

    floor = accuracy_floor(fleet, Policy(max_accuracy_drop=0.02))

    assert floor is not None
    assert floor.value == pytest.approx(0.95)
    assert floor.total == 100
    assert accuracy_floor([None], Policy()) is None


def test_a_short_evaluation_is_held_to_the_floor_by_its_interval() -> None:
    """8 of 10 may well be 0.9 in truth; 80 of 100 of the whole set is not."""
    assert FLOOR.refuses(Accuracy(correct=8, total=10)) is None
    assert FLOOR.refuses(Accuracy(correct=80, total=100)) is not None


@given(st.dictionaries(st.sampled_from([FLOAT, INT8, TPU, "tflite/int8/none/t1"]), st.lists(st.booleans(), min_size=1)))
def test_the_reference_is_never_refused(drawn: dict[str, list[bool]]) -> None:
    """Whatever was measured: somebody accurate enough is left to win when there is a reference."""
    found = yardstick({text: right_answers(flags, len(flags)) for text, flags in drawn.items()}, floor=Floor(0.5, 4))

    reference = found.reference()

    assert reference is None or found.refuses(reference) is None
