from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.adapters import Calibration, LowConfidence, OpinionShare
from schemas.predictions import Confidence
from schemas.tasks import TaskSpec
from shared.answers import answer_form
from shared.answers.measure import UNKNOWN, ConfidenceMeasure
from shared.model.confidence import calibrated, log_odds, measure

END = "<|im_end|>"


def labelled(*labels: str) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": list(labels)}
    )


FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})
DESK = labelled("refund", "return", "login")


def token(text: str, p: float, **others: float) -> dict[str, Any]:
    """A token with its probability, and what else is listed: `others`, and improbable ones up to twenty."""
    listed = [(text, p), *others.items()]
    listed += [(f"#{n}", 1e-9) for n in range(20 - len(listed))]
    return {
        "token": text, "logprob": math.log(p),
        "top_logprobs": [{"token": t, "logprob": math.log(q)} for t, q in listed],
    }  # fmt: skip


def temperature(value: float) -> Calibration:
    return Calibration(name="desk-1", kind="temperature", temperature=value, answers=80, ece_before=0.2, ece_after=0.1)


def isotonic(*knots: tuple[float, float]) -> Calibration:
    return Calibration(name="desk-2", kind="isotonic", knots=knots, answers=2_000, ece_before=0.2, ece_after=0.1)


def test_a_labels_probability_is_relative_to_the_labels() -> None:
    measured = measure(DESK, [token("login", 0.3, **{"refund": 0.1, "The": 0.5}), token(END, 0.9)])
    assert measured.score == pytest.approx(0.75)
    assert (measured.logprob, measured.tokens) == (pytest.approx(math.log(0.3 * 0.9)), 2)


def test_a_second_opinion_has_a_share_in_the_score_that_is_calibrated() -> None:
    answer = [token("login", 0.75, refund=0.25), token(END, 0.9)]
    shared = temperature(1.0).model_copy(update={"opinion": OpinionShare(own=0.5, other=2.0)})
    asked: list[str] = []

    def opinion(label: str) -> float | None:
        asked.append(label)
        return -1.0

    measured = measure(DESK, answer, shared, opinion)
    assert asked == ["login"]
    assert measured.raw == pytest.approx(1.0 / (1.0 + math.exp(-(0.5 * math.log(3.0) - 2.0))))
    silent = 1.0 / (1.0 + math.exp(-0.25 * math.log(3.0)))
    assert measure(DESK, answer, shared, lambda label: None).raw == pytest.approx(silent), "at its own temperature"
    assert measure(DESK, answer, temperature(1.0), opinion).raw == pytest.approx(0.75), "it was calibrated without"
    assert measure(DESK, answer, None, opinion).score == pytest.approx(0.75), "nothing is calibrated"
    cut = [token("log", 0.75, refund=0.25)]
    alone = measure(DESK, cut, shared, lambda label: None).raw
    assert measure(DESK, cut, shared, opinion).raw == alone < (measure(DESK, cut).score or 0.0), "no label, no opinion"


def test_a_token_counts_only_where_labels_diverge() -> None:
    answer = [token("re", 0.5, login=0.5), token("fu", 0.2, turn=0.1), token("nd", 0.01), token(END, 0.01)]
    measured = measure(DESK, answer)
    assert measured.score == pytest.approx(0.5 * 2 / 3)


def test_another_tokenization_counts_for_the_same_label() -> None:
    measured = measure(DESK, [token("l", 0.3, **{"login": 0.3, "log": 0.2, "re": 0.2}), token("ogin", 0.5)])
    assert measured.score == pytest.approx(0.8)


def test_a_label_that_is_a_prefix_of_another_is_decided_by_its_end_token() -> None:
    spec = labelled("card", "card lost", "login")
    ended = measure(spec, [token("card", 0.9, login=0.1), token(END, 0.3, **{" lost": 0.1, " stolen": 0.6})])
    continued = measure(spec, [token("card", 0.9, login=0.1), token(" lost", 0.1, **{END: 0.3}), token(END, 1.0)])
    assert ended.score == pytest.approx(0.9 * 0.75)
    assert continued.score == pytest.approx(0.9 * 0.25)
    unlisted = measure(spec, [token("card", 0.9, login=0.1), token(" lost", 0.1)])
    assert unlisted.score == pytest.approx(0.9, abs=1e-6)


def test_a_leading_space_or_line_break_is_not_part_of_a_label() -> None:
    assert measure(DESK, [token(" login", 0.3, refund=0.1)]).score == pytest.approx(0.75)
    assert measure(DESK, [token("\n", 0.5), token("login", 0.6, refund=0.2)]).score == pytest.approx(0.75)
    assert measure(DESK, [token("login", 0.3, **{" refund": 0.1}), token("\n", 0.1)]).score == pytest.approx(0.75)


def test_labels_of_which_nothing_is_listed_have_at_most_the_rest() -> None:
    spec = labelled("a", "b", "c", "d")
    few = {"token": "a", "logprob": math.log(0.5), "top_logprobs": [
        {"token": "a", "logprob": math.log(0.5)}, {"token": "x", "logprob": math.log(0.3)},
        {"token": "b", "logprob": math.log(0.15)}]}  # fmt: skip
    measured = measure(spec, [few])
    assert measured.score == pytest.approx(0.5 / (0.5 + 0.15 + 0.05))  # c and d share the 0.05 left over.
    rare = {**few, "top_logprobs": [*few["top_logprobs"], {"token": "y", "logprob": math.log(0.01)}]}
    assert measure(spec, [rare]).score == pytest.approx(0.5 / (0.5 + 0.15 + 0.02))


def test_without_a_list_a_token_counts_with_its_plain_probability() -> None:
    bare = [{"token": "log", "logprob": -0.5, "top_logprobs": []}, {"token": "in", "logprob": -0.1}]
    measured = measure(DESK, bare)
    assert measured.score == pytest.approx(math.exp(-0.5))


def test_an_answer_that_is_no_label_has_its_plain_probability() -> None:
    measured = measure(DESK, [token("It", 0.6, login=0.2), token(" is", 0.5)])
    assert measured.score == pytest.approx(0.3)
    cut_off = measure(DESK, [token("re", 0.6, login=0.2)])
    assert cut_off.score == pytest.approx(0.6)


def test_a_text_has_its_tokens_geometric_mean() -> None:
    measured = measure(FREE, [token("a", 0.9), token("b", 0.4), token("c", 0.5), token("d", 0.1)])
    assert measured.score == pytest.approx((0.9 * 0.4 * 0.5 * 0.1) ** 0.25)


def test_the_request_fields_depend_on_the_kind() -> None:
    assert answer_form(DESK).confidence_fields == {"logprobs": True, "top_logprobs": 20}
    assert answer_form(FREE).confidence_fields == {"logprobs": True}


def test_rounding_upstream_never_makes_a_probability_above_one() -> None:
    sure = {"token": "login", "logprob": 1e-7, "top_logprobs": [{"token": "login", "logprob": 1e-7}]}
    assert measure(DESK, [sure]).score == 1.0
    assert measure(FREE, [sure]).score == 1.0
    never = {"token": "login", "logprob": -9999.0, "top_logprobs": [{"token": "login", "logprob": -9999.0}]}
    assert measure(DESK, [never]).score == 0.0


GOOD = token("login", 0.5, refund=0.1)


@pytest.mark.parametrize("spec", [DESK, FREE])
@pytest.mark.parametrize(
    "tokens",
    [
        None, [], {}, [None], ["login"], [{}], [{"token": "login"}], [{"token": "login", "logprob": None}],
        [{"token": "login", "logprob": "-1"}], [{"token": "login", "logprob": math.nan}],
        [{"token": "login", "logprob": -math.inf}], [{"token": "login", "logprob": 0.5}], [GOOD, {"logprob": math.nan}],
        [{"token": "login", "logprob": [1]}], 7, "login",
    ],
)  # fmt: skip
def test_invalid_tokens_give_no_confidence_and_no_error(spec: TaskSpec, tokens: Any) -> None:
    assert measure(spec, tokens, temperature(2.0)) == UNKNOWN


@pytest.mark.parametrize(
    "listed",
    [
        7, "login", [None], [{}],  [{"token": [], "logprob": -1}],
        [{"token": "login", "logprob": math.nan}], [{"token": "refund", "logprob": 5.0}, *GOOD["top_logprobs"]],
        [{"token": "refund", "logprob": -0.01}, *GOOD["top_logprobs"]], [{"token": "login"}],
    ],
)  # fmt: skip
def test_an_invalid_list_gives_no_confidence_and_no_error(listed: Any) -> None:
    measured = measure(DESK, [{**GOOD, "top_logprobs": listed}])
    assert measured == UNKNOWN


def test_the_score_is_calibrated_and_the_raw_score_is_kept() -> None:
    plain = measure(DESK, [token("login", 0.3, refund=0.1)])
    measured = measure(DESK, [token("login", 0.3, refund=0.1)], temperature(2.0))
    assert plain.raw is None
    assert measured.raw == plain.score
    assert measured.score == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)))
    assert (measured.calibration, measured.logprob) == ("desk-1", plain.logprob)
    assert measure(FREE, [GOOD], temperature(2.0)).calibration is None


def test_a_calibrated_answer_has_its_adapters_threshold_of_low_confidence() -> None:
    low = LowConfidence(threshold=0.9, calibrated=0.75, recall=0.8, flagged=0.3, errors=40)
    of_adapter = temperature(2.0).model_copy(update={"low_confidence": low})
    answer = [token("login", 0.3, refund=0.1)]
    assert measure(DESK, answer, of_adapter).threshold == 0.75
    assert measure(DESK, answer, of_adapter).score == measure(DESK, answer, temperature(2.0)).score
    assert measure(DESK, answer, temperature(2.0)).threshold is None
    assert measure(FREE, [GOOD], of_adapter).threshold is None


def test_an_isotonic_map_is_linear_between_its_knots_and_constant_beyond() -> None:
    ladder = isotonic((-1.0, 0.2), (0.0, 0.4), (3.0, 0.9))
    assert calibrated(ladder, 0.5) == pytest.approx(0.4)
    assert calibrated(ladder, 1 / (1 + math.exp(-1.5))) == pytest.approx(0.65)
    assert (calibrated(ladder, 0.0), calibrated(ladder, 1.0)) == (0.2, 0.9)


@pytest.mark.parametrize("knots", [(), ((0.0, 0.5),), ((0.0, 0.5), (0.0, 0.6)), ((0.0, 0.5), (1.0, 0.4))])
def test_an_isotonic_map_that_does_not_ascend_is_refused(knots: Any) -> None:
    with pytest.raises(ValueError, match="knots"):
        isotonic(*knots)


def test_the_events_field_is_what_the_schema_reads() -> None:
    measured = measure(DESK, [GOOD, token(END, 0.9)], temperature(2.0))
    read = Confidence.model_validate_json(json.dumps(measured.as_dict()))
    assert ConfidenceMeasure(**read.model_dump()) == measured
    assert UNKNOWN.as_dict() == {"tokens": 0}
    assert set(Confidence.model_fields) == set(ConfidenceMeasure._fields)


@st.composite
def answers(draw: st.DrawFn) -> tuple[TaskSpec, list[dict[str, Any]]]:
    """Labels that share beginnings, and an answer with anything listed that sums to no more than one."""
    labels = draw(st.lists(st.text("ab ", min_size=1, max_size=4).map(str.strip).filter(bool), min_size=2, unique=True))
    answer = draw(st.sampled_from([*labels, draw(st.text("abc", min_size=1, max_size=5))]))
    cuts = sorted(draw(st.sets(st.integers(1, max(len(answer) - 1, 1)))) & set(range(1, len(answer))))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    if draw(st.booleans()):
        pieces.append(END)
    tokens = []
    for piece in pieces:
        texts = draw(st.lists(st.text("ab c", max_size=3) | st.just(END), max_size=6, unique=True))
        texts = [piece, *(t for t in texts if t != piece)]
        weights = [draw(st.floats(0, 1)) for _ in texts]
        scale = max(sum(weights), draw(st.floats(0.01, 2)))
        listed = [
            {"token": t, "logprob": math.log(w / scale) if w / scale > 0 else -9999.0}
            for t, w in zip(texts, weights, strict=True)
        ]
        ranked = sorted(listed, key=lambda entry: -entry["logprob"])
        tokens.append({**listed[0], "top_logprobs": draw(st.sampled_from([ranked, ranked[:2], []]))})
    return labelled(*labels), tokens


@settings(max_examples=120)
@given(answers())
def test_every_figure_is_a_probability(
    case: tuple[TaskSpec, list[dict[str, Any]]],
) -> None:
    spec, tokens = case
    measured = measure(spec, tokens)
    Confidence.model_validate(measured.as_dict())
    assert measured.score is not None, (spec.labels, tokens)
    assert measured.raw is None


@settings(max_examples=80)
@given(
    st.floats(0, 1), st.floats(0, 1),
    st.floats(0.01, 50).map(temperature)
    | st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=2, max_size=9, unique_by=lambda knot: knot[0])
    .map(lambda knots: zip(sorted(k[0] for k in knots), sorted(k[1] for k in knots), strict=True))
    .map(lambda knots: isotonic(*knots)),
)  # fmt: skip
def test_a_calibration_gives_probabilities_and_preserves_their_order(
    first: float, second: float, map_: Calibration
) -> None:
    low, high = sorted((first, second))
    assert 0.0 <= calibrated(map_, low) <= calibrated(map_, high) + 1e-12 <= 1.0 + 1e-12
    assert calibrated(temperature(1.0), first) == pytest.approx(first, abs=1e-8)
    assert log_odds(low) <= log_odds(high)


@settings(max_examples=80)
@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["token", "logprob", "top_logprobs"]), inner, max_size=3),
    max_leaves=12,
))  # fmt: skip
def test_no_upstream_makes_it_raise(tokens: Any) -> None:
    for spec in (DESK, FREE):
        Confidence.model_validate(measure(spec, tokens, temperature(0.5)).as_dict())


def test_measuring_takes_microseconds() -> None:
    label = [token("re", 0.5, login=0.4), token("fu", 0.6, turn=0.3), token("nd", 0.9)]
    text = [{"token": "x", "logprob": -0.5, "top_logprobs": []}] * 200
    for spec, tokens, budget in ((DESK, label, 10e-6), (FREE, text, 100e-6)):
        best = min(_seconds(spec, tokens) for _ in range(20))
        assert best < 5 * budget  # Of the budget for an idle machine; tests run on busy ones.


def _seconds(spec: TaskSpec, tokens: list[dict[str, Any]]) -> float:
    started = time.process_time()
    for _ in range(500):
        measure(spec, tokens, None)
    return (time.process_time() - started) / 500
