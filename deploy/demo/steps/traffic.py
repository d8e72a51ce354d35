"""The first part: held-out questions, production traffic, and the corrections that people make."""

from __future__ import annotations

import time
from statistics import median

from deploy.demo.clients import GatewayAnswer
from deploy.demo.report.measure import Measurement, measure
from deploy.demo.settings import Fault
from deploy.demo.state import LoopContext
from deploy.demo.steps.cycle import poll
from shared.errors import RatchetError

CONCURRENCY = 8
QUIET_SECONDS = 4.0
"""People are done when all predictions are corrected and no answer came for so long."""
STALL_SECONDS = 25.0
"""With enough corrections for a dataset, the loop continues when no answer came for so long."""
CORRECTION_SECONDS, SECONDS_PER_CORRECTION = 300.0, 0.5
FAULTS = {
    Fault.NOISE: "the fault: so many labels are wrong that the data set must be stopped",
    Fault.SHUFFLED_LABELS: "the fault: every text has another text's label, so nothing can be learned",
    Fault.ONE_CLASS: "the fault: everything has the same label",
}


async def ask_held_out(loop: LoopContext, when: str) -> Measurement:
    """Ask the held-out questions through the gateway, before and after. People never see them."""
    rows = loop.setup.rows.held_out
    with loop.terminal.step(when, f"Held-out questions {when}: {len(rows)} through the gateway") as progress:
        correct = failed = done = 0

        def count(answer: GatewayAnswer) -> None:
            nonlocal correct, failed, done
            done, correct, failed = done + 1, correct + answer.correct, failed + (not answer.ok)
            progress.update(done, len(rows), f"{correct} correct" + (f", {failed} failed" if failed else ""))

        answers = await loop.clients.gateway.ask_all(rows, f"held-out-{when}", CONCURRENCY, count)
    measured = measure(answers, loop.setup.task)
    if measured.failed == len(rows):
        raise RatchetError(f"no held-out question was answered ({answers[0].error})", loop.where_to_look)
    interval = measured.accuracy
    served = ", ".join(f"{count} by {variant}" for variant, count in measured.variants.items())
    loop.terminal.say(
        *_parts(measured),
        "accuracy ", (f"{interval.value:.1%}", "bold"),
        f" (95 % {interval.low:.1%}–{interval.high:.1%}, n = {interval.n}) · p50 {measured.latency_ms_p50:.0f} ms, "
        f"p95 {measured.latency_ms_p95:.0f} ms · {served}",
    )  # fmt: skip
    return measured


def _parts(measured: Measurement) -> list[str | tuple[str, str]]:
    """What the line of an extraction or a generation begins with."""
    if (score := measured.text_score) is not None:
        return ["score ", (f"{score.value:.3f}", "bold"), f" (95 % {score.low:.3f}–{score.high:.3f}); equal texts: "]
    if measured.field_f1 is None:
        return []
    return [
        "field F1 ",
        (f"{measured.field_f1:.1%}", "bold"),
        f", {measured.valid} answers by the schema; whole answers: ",
    ]


async def send_traffic(loop: LoopContext) -> list[GatewayAnswer]:
    """Send the traffic that people will look at; the reviewers learn of each answer's prediction."""
    rows, reviewers = loop.setup.rows.traffic, loop.reviewers
    title = f"Traffic: {len(rows)} requests, each a prediction with its confidence"
    with loop.terminal.step("traffic", title) as progress:
        done = 0

        def add(answer: GatewayAnswer) -> None:
            nonlocal done
            done += 1
            if answer.ok:
                reviewers.add_prediction(answer.prediction_id, answer.row)
            progress.update(done, len(rows), f"{reviewers.counts.answers} corrections meanwhile")

        answers = await loop.clients.gateway.ask_all(rows, "traffic", CONCURRENCY, add)
        loop.check_background()
    failed = [answer for answer in answers if not answer.ok]
    if len(failed) > len(rows) / 2:
        raise RatchetError(f"{len(failed)} of {len(rows)} requests failed ({failed[0].error})", loop.where_to_look)
    confidences = [answer.confidence for answer in answers if answer.confidence is not None] or [0.0]
    right = sum(answer.correct for answer in answers)
    loop.terminal.say(
        f"{right / len(answers):.0%} right, median confidence {median(confidences):.3f}: it is not calibrated "
        "and says nothing, so people are asked within their budget" + (f"; {len(failed)} failed" if failed else "")
    )
    return answers


async def await_corrections(loop: LoopContext, answers: list[GatewayAnswer]) -> None:
    """Wait until people have answered what they were asked, about every prediction; at least as a data set needs."""
    asked = {answer.prediction_id for answer in answers if answer.ok}
    min_corrections = loop.setup.task.dataset.min_examples
    seconds = CORRECTION_SECONDS + len(asked) * SECONDS_PER_CORRECTION
    people, last_count, changed_at = loop.reviewers, -1, time.monotonic()
    title = "People correct, through the console's API (some wrong, some in disagreement)"
    with loop.terminal.step("corrections", title) as progress:

        async def settled() -> bool:
            nonlocal last_count, changed_at
            loop.check_background()
            if people.counts.answers != last_count:
                last_count, changed_at = people.counts.answers, time.monotonic()
            quiet = time.monotonic() - changed_at
            progress.update(len(people.corrected), len(asked), f"{people.counts.answers} answers")
            if asked <= people.corrected and quiet > QUIET_SECONDS:
                return True
            return len(people.corrected) >= min_corrections and quiet > loop.limit(STALL_SECONDS)

        timeout = loop.timeout(f"fewer than the {min_corrections} corrections that a dataset needs", seconds)
        await poll(settled, loop.limit(seconds), timeout)
        people.only_pairs = True
    counts = people.counts
    loop.terminal.say(
        f"{len(people.corrected)} predictions corrected with {counts.answers} answers; on purpose {counts.wrong} of "
        f"them wrong and {counts.disagreed} in disagreement"
    )
    if (fault := loop.setup.options.fault) is not None:
        loop.terminal.say((FAULTS[fault], "yellow"))
