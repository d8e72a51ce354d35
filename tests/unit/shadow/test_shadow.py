"""Shadow replays only eligible predictions, within its sample and its budget."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from faststream.kafka import KafkaBroker, TestKafkaBroker

from schemas.base import Variant
from schemas.conversation import Answer, Api, FinishReason, Media, Message, Part, Role, ToolCall
from schemas.rollouts import ShadowCompared, Stage
from services.shadow.clients import Replay
from services.shadow.domain import DailyBudget, is_eligible, pair_of, request_of, same_answer
from services.shadow.handlers import Handlers
from services.shadow.settings import ShadowSettings
from shared.errors import DependencyUnavailable
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from tests.unit.shadow.fakes import (
    CUTOFF,
    OneTrainingIndex,
    Shadow,
    answer,
    call,
    logged,
    prediction,
    reply,
    rollout,
    texts,
    with_tools,
)


async def test_an_eligible_prediction_becomes_a_pair() -> None:
    (pair,) = await Shadow().replay(prediction())
    assert isinstance(pair, ShadowCompared)
    assert texts(pair) == ("refund", "delivery")
    assert not pair.agree
    assert pair.call == prediction().call
    assert (pair.user_hash, pair.cycle_id, pair.logged_at) == ("user-1", "cycle-1", CUTOFF + timedelta(minutes=1))


@pytest.mark.parametrize(
    ("changes", "primary"),
    [
        ({"occurred_at": CUTOFF}, None),
        ({"task_revision": "another"}, None),
        ({"variant": Variant.CANARY, "adapter": "a1"}, None),
        ({"variant": Variant.ROLLBACK}, None),
        ({"variant": Variant.EXTERNAL}, None),
        ({"variant": Variant.PRIMARY, "adapter": "old"}, None),
        ({"variant": Variant.BASE}, "a0"),
    ],
)
async def test_only_the_primarys_answer_to_a_new_input_becomes_a_pair(
    changes: dict[str, Any], primary: str | None
) -> None:
    assert not is_eligible(prediction(**changes), rollout(primary=primary))
    assert await Shadow().replay(prediction(**changes), under=rollout(primary=primary)) == []


async def test_the_primary_adapters_answers_are_compared_when_it_serves() -> None:
    served = prediction(variant=Variant.PRIMARY, adapter="a0")
    assert len(await Shadow().replay(served, under=rollout(Stage.CANARY, primary="a0"))) == 1


@pytest.mark.parametrize("stage", [Stage.PROMOTED, Stage.REJECTED, Stage.ROLLED_BACK])
async def test_nothing_is_replayed_without_an_active_candidate(stage: Stage) -> None:
    shadow = Shadow()
    assert await shadow.replay(prediction(), under=rollout(stage)) == []
    assert shadow.candidate.asked == []


async def test_a_near_duplicate_of_a_training_row_is_not_a_pair() -> None:
    shadow = Shadow("Where is parcel number 1, that I ordered?!")
    assert await shadow.replay(prediction(1)) == []
    other = prediction(2, call=call("please send my money back"))
    assert len(await shadow.replay(other)) == 1


async def test_the_flag_pauses_shadow() -> None:
    shadow = Shadow()
    shadow.sampling.on = False
    assert await shadow.replay(prediction()) == []
    shadow.sampling.on = True
    assert len(await shadow.replay(prediction())) == 1


async def test_a_days_budget_is_not_exceeded() -> None:
    shadow = Shadow()
    assert len(await shadow.replay(*[prediction(number) for number in range(30)])) == 20
    assert await shadow.replay(prediction(31)) == []
    assert len(shadow.candidate.asked) == 20


def test_each_task_has_its_own_budget_each_day() -> None:
    budget = DailyBudget()
    day = datetime(2026, 11, 23, 23, 59, tzinfo=UTC)
    assert [budget.take("t", 2, day) for _ in range(3)] == [True, True, False]
    assert budget.take("another", 2, day)
    assert budget.take("t", 2, day + timedelta(minutes=1))


async def test_a_redelivered_prediction_is_the_same_pair() -> None:
    shadow = Shadow()
    (first,) = await shadow.replay(prediction())
    (second,) = await shadow.replay(prediction())
    assert (first.event_id, first.pair_id) == (second.event_id, second.pair_id)
    assert first.pair_id != pair_of(prediction(2), rollout(), answer(), answer(), 1.0, CUTOFF).pair_id


async def test_both_arms_are_asked_again_when_the_stored_text_was_redacted() -> None:
    shadow = Shadow()
    (pair,) = await shadow.replay(prediction(redactions=1))
    assert (texts(pair), pair.agree) == (("login", "delivery"), False)
    shadow.candidate.given_by_production = reply("delivery")
    (pair,) = await shadow.replay(prediction(2, redactions=3))
    assert (texts(pair), pair.agree) == (("delivery", "delivery"), True)
    assert len(shadow.candidate.asked) == 4


@pytest.mark.parametrize("given", [reply(None), reply("log", FinishReason.LENGTH)])
async def test_without_productions_whole_answer_to_the_stored_text_there_is_no_pair(given: Replay) -> None:
    shadow = Shadow()
    shadow.candidate.given_by_production = given
    assert await shadow.replay(prediction(redactions=1)) == []
    assert len(shadow.candidate.asked) == 1


async def test_both_replays_of_a_redacted_text_count_against_the_budget() -> None:
    shadow = Shadow()
    events = [prediction(number, redactions=1) for number in range(30)]
    assert len(await shadow.replay(prediction(99), *events)) == 1 + 9
    assert len(shadow.candidate.asked) == 1 + 18


async def test_a_candidate_that_errs_disagrees() -> None:
    shadow = Shadow()
    shadow.candidate.given = reply(None)
    (pair,) = await shadow.replay(prediction())
    assert (pair.candidate_answer, pair.agree) == (None, False)


async def test_an_unavailable_engine_means_redelivery_and_not_a_loss() -> None:
    shadow = Shadow()
    shadow.candidate.away = True
    with pytest.raises(DependencyUnavailable):
        await shadow.replay(prediction(1), prediction(2))
    assert shadow.published.events == []


@pytest.mark.parametrize(
    "cut",
    [
        {"call": call(truncated=True)},
        {"answers": (answer(truncated=True),)},
        {"answers": (answer(finish_reason=FinishReason.LENGTH),)},
        {"answers": (answer("", finish_reason=FinishReason.CLIENT_LEFT),)},
        {"answers": (answer(finish_reason=FinishReason.UPSTREAM_CUT), answer(name="support-desk.2"))},
        {"answers": (answer(refusal="I cannot."),)},
        {"latency_ms": 20_001.0},
    ],
)
async def test_what_was_cut_refused_or_too_slow_in_production_is_not_a_pair(cut: dict[str, Any]) -> None:
    shadow = Shadow()
    assert await shadow.replay(prediction(**cut)) == []
    assert shadow.candidate.asked == []


@pytest.mark.parametrize("key", [None, "media/kept"])
async def test_a_conversation_with_a_picture_is_not_a_pair(key: str | None) -> None:
    picture = Part(type="image_url", media=Media(kind="image", hash="5d3f", key=key))
    shown = Message(role=Role.USER, content=(Part(type="text", text="what is this?"), picture))
    shadow = Shadow()
    assert await shadow.replay(prediction(call=call(messages=(shown,)))) == []
    assert shadow.candidate.asked == []


async def test_a_long_conversation_that_the_event_has_cut_is_not_a_pair() -> None:
    event = logged("truncated", answers=(answer(),))
    assert await Shadow().replay(event) == []
    assert len(await Shadow().replay(event.model_copy(update={"call": call()}))) == 1


async def test_what_the_candidate_answers_is_never_a_reason_to_leave_the_pair_out() -> None:
    shadow = Shadow()
    shadow.candidate.given = reply("", FinishReason.LENGTH)
    (pair,) = await shadow.replay(prediction())
    assert (texts(pair), pair.agree) == (("refund", ""), False)


async def test_a_conversation_with_tools_is_replayed_whole_and_compared_by_its_tool_calls() -> None:
    shadow = Shadow()
    event = with_tools()
    calls = (ToolCall(name="find_order", arguments='{"number": "4713"}', id="another"),)
    same = Answer(tool_calls=calls, reasoning="Other thoughts.", finish_reason=FinishReason.TOOL_CALLS)
    shadow.candidate.given = Replay(same, 5.0)
    (pair,) = await shadow.replay(event)
    assert pair.agree
    assert (pair.call, pair.prediction_id) == (event.call, event.answers[0].prediction_id)
    assert (pair.production_answer.tool_calls, pair.production_answer.reasoning) == (
        event.answers[0].tool_calls, "The label says 4713.",
    )  # fmt: skip
    (request,) = shadow.candidate.asked
    assert request.path == "/v1/chat/completions"
    assert (request.body["tools"], request.body["tool_choice"]) == (list(event.call.tools), "auto")
    assert [message["role"] for message in request.body["messages"]] == [m.role for m in event.call.messages]
    other = same.model_copy(update={"tool_calls": (calls[0].model_copy(update={"arguments": '{"number": "4711"}'}),)})
    shadow.candidate.given = Replay(other, 5.0)
    assert not (await shadow.replay(event))[0].agree


async def test_both_arms_have_the_logged_sampling_parameters_but_a_seed_of_their_own() -> None:
    shadow = Shadow()
    parameters = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 512, "seed": 7, "n": 2}
    await shadow.replay(with_tools(parameters=parameters).model_copy(update={"redactions": 1}))
    assert len(shadow.candidate.asked) == 2
    for request in shadow.candidate.asked:
        assert not {"seed", "n"} & set(request.body)
        assert {name: request.body[name] for name in ("temperature", "top_p", "max_tokens")} == {
            "temperature": 0.7, "top_p": 0.95, "max_tokens": 512,
        }  # fmt: skip


async def test_a_request_with_several_answers_is_one_pair_of_the_first() -> None:
    several = (answer("refund"), answer("delivery", "support-desk.2"), answer("login", "support-desk.3"))
    (pair,) = await Shadow().replay(prediction(answers=several))
    assert (pair.prediction_id, texts(pair)) == ("support-desk.1", ("refund", "delivery"))


@pytest.mark.parametrize(
    ("api", "path", "field"),
    [
        (Api.CHAT, "/v1/chat/completions", "messages"),
        (Api.MESSAGES, "/v1/chat/completions", "messages"),
        (Api.EXTERNAL, "/v1/chat/completions", "messages"),
        (Api.RESPONSES, "/v1/responses", "input"),
        (Api.COMPLETIONS, "/v1/completions", "prompt"),
    ],
)
def test_a_call_is_replayed_by_the_api_that_it_came_by(api: Api, path: str, field: str) -> None:
    messages = (Message(role=Role.USER, content="where is it?"),)
    request = request_of(prediction(call=call(api=api, messages=messages)), rollout())
    assert request.path == path
    assert field in request.body
    assert request.body["structured_outputs"] == {"choice": ["delivery", "refund"]}


async def test_a_pair_too_long_for_a_question_is_cut_and_says_so_after_it_was_compared() -> None:
    shadow = Shadow()
    long = "word " * 200_000
    shadow.candidate.given = reply(long + "end")
    event = prediction(call=call(long, constrained=False), answers=(answer(long + "END"),))
    (pair,) = await shadow.replay(event)
    assert pair.agree
    assert pair.call.truncated
    assert pair.production_answer.truncated
    assert pair.candidate_answer is not None
    assert pair.candidate_answer.truncated
    assert len(pair.model_dump_json()) < 900_000
    (request,) = shadow.candidate.asked
    assert request.body["messages"][1]["content"] == long


def test_answers_that_differ_in_case_and_space_agree() -> None:
    assert same_answer(Answer(text=" Refund\n"), Answer(text="refund"))
    assert not same_answer(Answer(text="refund"), Answer(text="refunds"))


async def test_a_prediction_on_the_broker_becomes_a_pair_on_the_broker() -> None:
    broker = KafkaBroker("nowhere:9092")
    shadow = Shadow()
    handlers = Handlers(
        ShadowSettings(), shadow.sampling, OneTrainingIndex(), shadow.candidate, Publisher(broker, "shadow")
    )
    handlers.subscribe(Consumers(broker, "shadow", ShadowSettings()))
    pairs: list[ShadowCompared] = []

    async def record(event: ShadowCompared) -> None:
        pairs.append(event)

    Consumers(broker, "deployer", ShadowSettings()).on(ShadowCompared, record)
    async with TestKafkaBroker(broker):
        await Publisher(broker, "deployer").publish(rollout())
        await Publisher(broker, "gateway").publish(prediction())
    assert [texts(pair) for pair in pairs] == [("refund", "delivery")]
