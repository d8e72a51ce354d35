"""A judge compares blind and in both orders, within its limits; it stops a candidate only once people agree with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from schemas.base import utc_now
from schemas.conversation import Answer, Message, Role
from schemas.datasets import PREFERENCES, PreferredAnswer
from schemas.evaluation_settings import JudgeSettings
from schemas.judging import JudgeReport
from schemas.tasks import TaskSpec
from services.evaluator.domain import Question
from services.evaluator.gates import judged
from services.evaluator.judge.certification import certify, lower_bound
from services.evaluator.judge.client import GIVE_UP_AFTER, MAX_SECONDS, JudgeClient
from services.evaluator.judge.pairs import AnswerPair, JudgedPair, judge_pairs
from services.evaluator.judge.question import judge_messages, read_verdict
from services.evaluator.judge.step import MAX_PAIRS, ask_judge, judge_arms, read_preferences
from services.evaluator.recipe import ArmAnswers
from services.evaluator.verdict import Asked

Reply = Callable[[dict[str, Any]], httpx.Response]
PROMPT = (Message(role=Role.USER, content="Where is my parcel?"),)


def settings(**changes: Any) -> JudgeSettings:
    return JudgeSettings.model_validate({"url": "https://judge.example/v1/", "model": "judge-1", **changes})


def said(text: str | None, finish_reason: str = "stop") -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": text}, "finish_reason": finish_reason}]})


def shown(body: dict[str, Any]) -> dict[str, str]:
    compared: dict[str, str] = json.loads(body["messages"][1]["content"])
    return compared


def longer_wins(body: dict[str, Any]) -> httpx.Response:
    a, b = (len(shown(body)[name]) for name in "AB")
    return said(json.dumps({"verdict": "A" if a > b else "B" if b > a else "tie"}))


class Api:
    """An OpenAI-compatible API; `requests` has the bodies and `keys` the headers."""

    def __init__(self, reply: Reply = longer_wins) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._reply = reply

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "https://judge.example/v1/chat/completions"
        self.requests.append(json.loads(request.content))
        self.keys.append(request.headers.get("authorization"))
        return self._reply(self.requests[-1])

    def client(self, key: str = "", clock: Callable[[], float] = lambda: 0.0, **changes: Any) -> JudgeClient:
        how: dict[str, Any] = {"transport": httpx.MockTransport(self), "clock": clock, "backoff_seconds": 0.0}
        return JudgeClient(settings(**changes), key, **how)


def pairs(count: int, first: str = "long answer", second: str = "short") -> list[AnswerPair]:
    return [AnswerPair(PROMPT, f"{first} {number}", f"{second} {number}") for number in range(count)]


async def verdicts(client: JudgeClient, asked: list[AnswerPair], at_once: int = 4) -> tuple[list[JudgedPair], str]:
    return await judge_pairs(client, asked, "Which is better?", lambda done: None, at_once)


def test_a_question_names_neither_arm_and_has_all_texts_in_one_json_value() -> None:
    system, user = judge_messages(PROMPT, 'x"}, "A": "me', "y", "Which is kinder?")
    assert json.loads(user["content"]) == {
        "conversation": [{"role": "user", "text": "Where is my parcel?"}], "A": 'x"}, "A": "me', "B": "y",
    }  # fmt: skip
    assert "Which is kinder?" in system["content"]
    assert not any(word in system["content"].lower() for word in ("candidate", "production", "adapter"))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"verdict": "A"}', "a"), ('{"verdict": "tie"}', "tie"), ("B", "b"), ("Verdict: **B**, since …", "b"),
        ("Answer A is better", "a"), ("Tie.", "tie"), ("A parcel?", None), ("", None), ("Both are good", None),
        ('{"verdict": 1}', None), ("Better is A", None), ("[" * 5_000, None),
        ("A is worse", None), ("Answer B is not better.", None), ("A tie", None), ("A's worse", None),
        ("A lacks it", None),
        ("B is the better one", "b"), ("B\n\nIt is kinder.", "b"), ("A — it is kinder", "a"), ("b", "b"),
        ('{"verdict": "A", "reason": "it was cu', "a"), ('```json\n{"verdict": "B"}\n```', "b"),
        ('{"verdict": "A is worse"}', None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_from_json_and_from_words(text: str, verdict: str | None) -> None:
    assert read_verdict(text) == verdict


async def test_each_pair_is_asked_in_both_orders_and_a_choice_by_place_is_none() -> None:
    api = Api()
    (found,), problem = await verdicts(api.client(), pairs(1))
    assert (found, found.preferred, problem) == (JudgedPair("a", "b"), 1, "")
    assert [shown(body)["A"] for body in api.requests] == ["long answer 0", "short 0"]
    (biased,), _ = await verdicts(Api(lambda body: said('{"verdict": "A"}')).client(), pairs(1))
    assert (biased.preferred, biased.consistent, biased.positions) == (0, False, [True, True])


async def test_equal_answers_tie_and_nobody_is_asked() -> None:
    api = Api()
    asked = [AnswerPair(PROMPT, "same", " same\n"), AnswerPair(PROMPT, "caf\u00e9", "cafe\u0301")]
    found, _ = await verdicts(api.client(), asked)
    assert ([each.preferred for each in found], api.requests) == ([0, 0], []), "é is one code point or two"


async def test_an_answer_that_is_no_verdict_prefers_neither() -> None:
    (found,), _ = await verdicts(Api(lambda body: said("As an AI I cannot say")).client(), pairs(1))
    assert found.preferred == 0


async def test_a_request_is_greedy_structured_and_has_the_key_and_the_model() -> None:
    api = Api()
    await verdicts(api.client(key="secret"), pairs(1))
    body = api.requests[0]
    assert (body["model"], body["temperature"], api.keys[0]) == ("judge-1", 0.0, "Bearer secret")
    assert body["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["A", "B", "tie"]


async def test_an_engine_without_structured_output_is_asked_in_words_from_then_on() -> None:
    api = Api(lambda body: httpx.Response(400) if "response_format" in body else longer_wins(body))
    found, problem = await verdicts(api.client(concurrency=1), pairs(2))
    assert ([each.preferred for each in found], problem) == ([1, 1], "")
    assert [("response_format" in body) for body in api.requests] == [True, *[False] * 4]
    assert all(body["temperature"] == 0.0 and body["max_tokens"] == 2_048 for body in api.requests)


async def test_an_engine_that_takes_neither_temperature_nor_a_limit_is_asked_without() -> None:
    api = Api(lambda body: httpx.Response(400) if "temperature" in body else longer_wins(body))
    found, problem = await verdicts(api.client(concurrency=1), pairs(2))
    assert ([each.preferred for each in found], problem) == ([1, 1], "")
    assert [len(body) for body in api.requests] == [5, 4, 2, 2, 2, 2]


async def test_a_judge_whose_thoughts_leave_no_room_for_a_verdict_is_given_up_and_says_why() -> None:
    api = Api(lambda body: said(None, "length"))
    found, problem = await verdicts(api.client(concurrency=1), pairs(40))
    assert len(api.requests) == GIVE_UP_AFTER and "cut off at 2,048 tokens" in problem
    assert all(not each.preferred for each in found), "it prefers neither, and does not gain by hard pairs"
    now_and_then = iter([said(None, "length"), *[said('{"verdict": "tie"}')] * 3] * 30)
    found, problem = await verdicts(Api(lambda body: next(now_and_then)).client(concurrency=1), pairs(40))
    assert ([each.preferred for each in found], problem) == ([0] * 40, "")


def test_what_a_model_thinks_aloud_before_its_verdict_is_not_read() -> None:
    assert read_verdict('<think>\nA is longer, but B is right.\n</think>\n\n{"verdict": "B"}') == "b"


async def test_a_failed_request_is_repeated_and_a_pair_without_an_answer_is_not_judged() -> None:
    failures = iter([True, True, False])
    api = Api(lambda body: httpx.Response(500) if next(failures, False) else longer_wins(body))
    (found,), _ = await verdicts(api.client(), pairs(1))
    assert (found.preferred, len(api.requests)) == (1, 4)
    (gone,), problem = await verdicts(Api(lambda body: httpx.Response(503)).client(), pairs(1))
    assert (gone.preferred, problem) == (None, "")


async def test_a_judge_that_is_away_or_refuses_the_key_is_given_up_and_nothing_of_it_is_quoted() -> None:
    away = Api(lambda body: httpx.Response(500, text="secret"))
    found, problem = await verdicts(away.client(concurrency=1), pairs(40))
    assert "in a row" in problem and "secret" not in problem
    assert len(away.requests) == 3 * GIVE_UP_AFTER
    assert all(each.preferred is None for each in found)
    refusing = Api(lambda body: httpx.Response(401, text="secret"))
    _, problem = await verdicts(refusing.client(concurrency=1), pairs(40))
    assert "401" in problem and "secret" not in problem
    assert len(refusing.requests) == 1


@pytest.mark.parametrize("character", ["\u201d", "\udca0"])
async def test_a_key_with_a_character_that_no_key_has_is_refused_by_the_judge_and_quoted_nowhere(
    character: str,
) -> None:
    """It was copied with a quotation mark, or with a blank of Latin-1, which no UTF-8 is: `os.environ` has that as a
    surrogate. As an internal error it would be in the event of the step."""
    api = Api(lambda body: httpx.Response(401))
    found, problem = await verdicts(api.client(f"sk-1{character}"), pairs(1))
    assert found[0].preferred is None and "401" in problem and "sk-1" not in problem


async def test_an_answer_that_is_nested_too_deeply_to_be_read_is_none() -> None:
    api = Api(lambda body: httpx.Response(200, content=b"[" * 100_000))
    found, problem = await verdicts(api.client(), pairs(1))
    assert (found[0].preferred, problem) == (None, "")


async def test_a_pair_that_the_judge_refuses_is_not_judged_and_the_others_are() -> None:
    """One answer longer than its context would else end the comparison, and let a bad candidate pass."""

    def short_ones(body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(400, text="context") if max(map(len, shown(body).values())) > 500 else longer_wins(body)

    asked = pairs(6)
    asked[2] = AnswerPair(PROMPT, "x" * 600, "short")
    api = Api(short_ones)
    found, problem = await verdicts(api.client(concurrency=1), asked)
    assert [each.preferred for each in found] == [1, 1, None, 1, 1, 1]
    assert problem == "" and len(api.requests) == 2 * 6
    assert all("response_format" in body and body["temperature"] == 0.0 for body in (api.requests[0], api.requests[-1]))


async def test_a_judge_that_refuses_one_comparison_after_the_other_is_given_up() -> None:
    api = Api(lambda body: httpx.Response(422))
    found, problem = await verdicts(api.client(concurrency=1), pairs(40))
    assert "in a row" in problem and "422" in problem
    assert len(api.requests) == 3 * GIVE_UP_AFTER, "each as it is, and in words"
    assert all(each.preferred is None for each in found)


async def test_requests_and_time_have_limits() -> None:
    api = Api()
    found, problem = await verdicts(api.client(max_requests=5, concurrency=1), pairs(10))
    assert (len(api.requests), "max_requests" in problem) == (5, True)
    assert 1 <= sum(each.preferred == 1 for each in found) <= 2
    ticks = iter([0.0, 1.0, 1.0, MAX_SECONDS + 1.0])
    late = Api()
    _, problem = await verdicts(late.client(clock=lambda: next(ticks, 2 * MAX_SECONDS), concurrency=1), pairs(3))
    assert (len(late.requests), "s are over" in problem) == (2, True)


async def test_a_judge_whose_requests_are_used_up_has_judged_half_as_many_pairs() -> None:
    """Each pair takes two requests: a second order that waits for all first ones would leave none judged."""

    async def slowly(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        return longer_wins(json.loads(request.content))

    transport = httpx.MockTransport(slowly)
    client = JudgeClient(settings(max_requests=100, concurrency=4), transport=transport, backoff_seconds=0.0)
    found, problem = await verdicts(client, pairs(150))
    assert "max_requests" in problem
    assert sum(each.preferred is not None for each in found) >= 48


async def test_no_more_requests_are_under_way_than_allowed() -> None:
    under_way, most = 0, 0

    async def slowly(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(5):
            await asyncio.sleep(0)
        under_way -= 1
        return longer_wins(json.loads(request.content))

    client = JudgeClient(settings(concurrency=3), transport=httpx.MockTransport(slowly))
    await verdicts(client, pairs(12))
    assert most == 3


def test_the_lower_bound_is_that_of_clopper_and_pearson() -> None:
    assert lower_bound(50, 50) == pytest.approx(0.05 ** (1 / 50))
    assert lower_bound(45, 50) == pytest.approx(0.8011, abs=1e-3)
    assert (lower_bound(0, 50), lower_bound(0, 0)) == (0.0, 0.0)


@pytest.mark.parametrize(("agreed", "certified"), [(45, True), (44, False)])
def test_a_judge_is_certified_from_the_bound_on_and_not_from_the_share(agreed: int, certified: bool) -> None:
    verdict = [JudgedPair("a", "b")] * agreed + [JudgedPair("a", "a")] * (50 - agreed)
    found = certify(verdict, [1] * 50, settings())
    assert (found.pairs, found.certified) == (50, certified)
    assert found.agreement is not None and found.agreement.value == agreed / 50
    assert found.consistent is not None and found.consistent.value == agreed / 50
    assert found.first_share is not None
    assert found.first_share.value == pytest.approx((agreed + 2 * (50 - agreed)) / 100)


def test_a_perfect_judge_is_not_certified_on_few_pairs_nor_one_that_always_takes_the_first() -> None:
    assert not certify([JudgedPair("a", "b")] * 49, [1] * 49, settings()).certified
    assert not certify([JudgedPair("a", "a")] * 400, [1] * 400, settings()).certified
    assert not certify([], [], settings()).certified


def preferred(choice: str, number: int = 0, answers: tuple[str, str] = ("a long answer", "short")) -> PreferredAnswer:
    return PreferredAnswer.model_validate({
        "prompt": PROMPT, "answers": [Answer(text=f"{text} {number}") for text in answers], "preferred": choice,
        "prediction_ids": [f"p{number}"], "correction_ids": [f"c{number}"], "predicted_at": utc_now(),
    })  # fmt: skip


def arms(candidate: str = "short", production: str = "a long answer", count: int = 12) -> Asked:
    questions = [Question(PROMPT, "right", group=f"g{number}") for number in range(count)]
    answers = (
        ArmAnswers(answers=tuple(f"{text} {n}" for n in range(count)), latencies_ms=())
        for text in (candidate, production)
    )
    return Asked(questions, (), *answers)


async def report(api: Api, people: list[PreferredAnswer], asked: Asked, **changes: Any) -> JudgeReport:
    client = api.client(**changes)
    return await judge_arms(client, settings(**changes), people, asked, lambda said: None)


async def test_a_certified_judge_stops_a_candidate_that_it_prefers_less_often() -> None:
    people = [preferred("a", number) for number in range(60)]
    found = await report(Api(), people, arms())
    assert (found.certified, found.wins, found.losses, found.requests) == (True, 0, 12, 2 * (60 + 12))
    stopped = judged(found)
    assert (stopped.passed, stopped.measured) == (False, pytest.approx(0.5**12))
    assert judged(await report(Api(), people, arms("a long answer", "short"))).passed


async def test_a_judge_that_people_do_not_agree_with_is_shown_and_stops_nothing() -> None:
    people = [preferred("b" if number % 2 else "a", number) for number in range(60)]
    found = await report(Api(), people, arms())
    assert (found.certified, found.losses) == (False, 12)
    shown_only = judged(found)
    assert (shown_only.passed, shown_only.measured, shown_only.labels_needed) == (True, None, None)
    assert "not certified" in shown_only.detail


async def test_only_peoples_choices_count_and_the_newest_of_them() -> None:
    ties = [preferred("both_right", number) for number in range(30)]
    old = [preferred("b", number) for number in range(100, 130)]
    new = [preferred("a", number) for number in range(200, 200 + MAX_PAIRS)]
    found = await report(Api(), [*ties, *old, *new], arms())
    assert (found.certification.pairs, found.certified) == (MAX_PAIRS, True)


async def test_a_judge_that_fails_halfway_gates_nothing_and_says_why() -> None:
    count = 0

    def reply(body: dict[str, Any]) -> httpx.Response:
        nonlocal count
        count += 1
        return longer_wins(body) if count <= 2 * 60 else httpx.Response(401)

    found = await report(Api(reply), [preferred("a", n) for n in range(60)], arms(), concurrency=1)
    assert found.certified and found.p_worse is None and "401" in found.problem
    assert judged(found).passed


async def test_the_judges_budget_takes_rows_by_their_texts_and_not_by_their_order() -> None:
    found = await report(Api(), [], arms(count=40), max_requests=20, concurrency=1)
    assert (found.wins + found.losses, found.requests) == (10, 20)


def test_a_task_without_a_judge_asks_nobody_and_a_killed_job_asks_no_second_time(tmp_path: Path) -> None:
    assert ask_judge(None, tmp_path, arms(), tmp_path, lambda *said: None) is None
    stored = JudgeReport(model="m", certified=False, certification=certify([], [], settings()), problem="x")
    (tmp_path / "judge.json").write_text(stored.model_dump_json())
    assert ask_judge(settings(), tmp_path, arms(), tmp_path, lambda *said: None) == stored


def test_a_judge_is_measured_by_blind_choices_alone_and_by_no_edit(tmp_path: Path) -> None:
    pairs = preferred("a", 1), preferred("a", 2).model_copy(update={"source": "edited"})
    (tmp_path / PREFERENCES).write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    assert read_preferences(tmp_path / PREFERENCES) == [pairs[0]]


def test_a_version_without_preferences_certifies_nobody_and_an_unreachable_judge_stops_no_job(tmp_path: Path) -> None:
    (tmp_path / PREFERENCES).write_text(preferred("a").model_dump_json() + "\n")
    unreachable = settings(url="http://127.0.0.1:9/v1")
    found = ask_judge(unreachable, tmp_path, arms(), tmp_path, lambda *said: None)
    assert found is not None and not found.certified and found.problem
    assert (tmp_path / "judge.json").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "https://me:secret@judge.example/v1"}, {"url": "judge.example"}, {"key_variable": "sk-abc"},
        {"key_variable": "RATCHET_POSTGRES"}, {"min_agreement": 0.4}, {"url": "https://x/v1?key=1"},
    ],
)  # fmt: skip
def test_settings_that_would_leak_a_secret_or_prove_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)
    assert settings(key_variable="RATCHET_JUDGE_KEY").key_variable == "RATCHET_JUDGE_KEY"


def test_a_judge_is_of_generated_text_alone() -> None:
    judge = {"url": "https://x/v1", "model": "m"}
    task = {"name": "t", "system_prompt": "Say.", "evaluation": {"judge": judge}}
    assert TaskSpec.model_validate({**task, "kind": "generation"}).evaluation.judge is not None
    with pytest.raises(ValidationError, match="generation"):
        TaskSpec.model_validate({**task, "kind": "classification", "labels": ["a", "b"]})
