"""The first half of a turn: held-out questions, traffic, and what people make of it."""

from __future__ import annotations

import time

from deploy.demo.clients import Asked
from deploy.demo.report.measure import Measurement, measure, percentile
from deploy.demo.state import Turn
from deploy.demo.steps.cycle import poll
from shared.errors import RatchetError

CONCURRENCY = 8
QUIET_SECONDS = 4.0
LOST_SECONDS = 25.0


async def ask_held_out(turn: Turn, when: str) -> Measurement:
    """The held-out questions through the gateway. People never see them, and they are asked before and after."""
    rows = turn.parts.held_out
    with turn.show.step(when, f"Held-out questions {when}: {len(rows)} through the gateway") as bar:
        right = failed = done = 0

        def count(asked: Asked) -> None:
            nonlocal right, failed, done
            done, right, failed = done + 1, right + asked.right, failed + (not asked.ok)
            bar.update(done, len(rows), f"{right} right" + (f", {failed} failed" if failed else ""))

        answers = await turn.gateway.ask_all(rows, f"held-out-{when}", CONCURRENCY, count)
    found = measure(answers)
    if found.failed == len(rows):
        raise RatchetError(f"no held-out question was answered ({answers[0].error})", turn.where_to_look)
    interval = found.accuracy
    served = ", ".join(f"{count} by {variant}" for variant, count in found.variants.items())
    turn.show.say(
        f"accuracy [bold]{interval.value:.1%}[/] (95 % {interval.low:.1%}–{interval.high:.1%}, n = {interval.n}) · "
        f"p50 {found.latency_ms_p50:.0f} ms, p95 {found.latency_ms_p95:.0f} ms · {served}"
    )
    return found


async def send_traffic(turn: Turn) -> list[Asked]:
    """Traffic that people will look at; each answer's prediction becomes known to the reviewers."""
    rows = turn.parts.traffic
    with turn.show.step("traffic", f"Traffic: {len(rows)} requests, each a prediction with its confidence") as bar:
        done = 0

        def know(asked: Asked) -> None:
            nonlocal done
            done += 1
            if asked.ok:
                turn.reviewers.know(asked.prediction_id, asked.row)
            bar.update(done, len(rows), f"{turn.reviewers.tally.spent} corrections meanwhile")

        answers = await turn.gateway.ask_all(rows, "traffic", CONCURRENCY, know)
        turn.check_background()
    failed = [asked for asked in answers if not asked.ok]
    if len(failed) > len(rows) / 2:
        raise RatchetError(f"{len(failed)} of {len(rows)} requests failed ({failed[0].error})", turn.where_to_look)
    sure = [asked.confidence for asked in answers if asked.confidence is not None]
    unsure = sum(confidence < turn.spec.failures.confidence_threshold for confidence in sure)
    turn.show.say(
        f"median confidence {percentile(sure, 0.5):.3f}; {unsure} of {len(sure)} under the threshold of "
        f"{turn.spec.failures.confidence_threshold}" + (f"; {len(failed)} failed" if failed else "")
    )
    return answers


async def await_corrections(turn: Turn, answers: list[Asked]) -> None:
    """Until people have answered what they were asked: every suspect once, overlapping ones twice."""
    threshold = turn.spec.failures.confidence_threshold
    suspects = {a.prediction_id for a in answers if a.ok and (a.confidence is None or a.confidence < threshold)}
    enough = turn.spec.dataset.min_examples
    seconds = 300.0
    people, seen, since = turn.reviewers, -1, time.monotonic()
    with turn.show.step("corrections", "People correct, through the console's API (some wrong, some at odds)") as bar:

        async def settled() -> bool:
            nonlocal seen, since
            turn.check_background()
            if people.tally.spent != seen:
                seen, since = people.tally.spent, time.monotonic()
            quiet = time.monotonic() - since
            bar.update(len(people.corrected), len(suspects), f"{people.tally.spent} answers")
            if suspects <= people.corrected and quiet > QUIET_SECONDS:
                return True
            return len(people.corrected) >= enough and quiet > turn.limit(LOST_SECONDS)

        late = turn.late(f"fewer than the {enough} corrections that a dataset needs", seconds)
        await poll(settled, turn.limit(seconds), late)
        people.only_pairs = True
    tally = people.tally
    turn.show.say(
        f"{len(people.corrected)} predictions corrected with {tally.spent} answers; on purpose {tally.wrong} of them "
        f"wrong and {tally.disagreed} in disagreement"
        + ("; [yellow]and all of them shuffled: nothing can be learned[/]" if turn.options.shuffle_labels else "")
    )
