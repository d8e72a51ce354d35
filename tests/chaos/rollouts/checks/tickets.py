"""What the answers to a rollout's tickets were worth at a moment, and the deployer's ledger against the events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.rollouts.checks.history import Answer, Entry, History, Pair
from tests.chaos.rollouts.checks.wealth import max_futility, max_wealth

_CANNOT_TELL = 2
_FRESH_TICKETS = 60
Place = tuple[int, int]


def worth(pair: Pair, label: str) -> float:
    """Return X of a label: 1 where only the candidate was right, -1 where only production was."""
    return float(_same(pair.candidate, label)) - float(_same(pair.production, label))


def _same(answer: str | None, label: str) -> bool:
    return answer is not None and " ".join(answer.casefold().split()) == " ".join(label.casefold().split())


class Ticket:
    """A ticket with its pair and its answers, in their order."""

    def __init__(self, entry: Entry, pair: Pair, answers: Sequence[Answer]) -> None:
        self.entry, self.pair = entry, pair
        self.answers = sorted(answers, key=lambda answer: answer.place)

    def outcome(self, answers: Sequence[Answer]) -> float | None:
        """Return what these answers come to: each person's newest, their mean; two shrugs are a tie."""
        if not self.entry.asked:
            return -1.0
        newest = {(a.request_id, a.reviewer): a for a in sorted(answers, key=lambda a: a.at)}
        labels = [worth(self.pair, a.label) for a in newest.values() if a.label is not None]
        if labels:
            return sum(labels) / len(labels)
        return 0.0 if len(newest) >= _CANNOT_TELL else None

    def possible(self, at: float) -> set[float]:
        """Return what it may have counted by then: some of the answers so far may still be on their way."""
        known = [answer for answer in self.answers if answer.at <= at]
        outcomes = {self.outcome(known[:count]) for count in range(len(known) + 1)}
        return {outcome for outcome in outcomes if outcome is not None}


class Tickets:
    """A rollout's tickets, in the order in which they were drawn: those that decide, or the fresh ones."""

    def __init__(self, history: History, rollout_id: str, *, fresh: bool = False) -> None:
        pairs = {pair.pair_id: pair for pair in history.pairs if pair.rollout_id == rollout_id}
        answers = defaultdict[str, list[Answer]](list)
        for answer in history.answers:
            answers[answer.ticket_id].append(answer)
        of_rollout = [e for e in history.entries if e.rollout_id == rollout_id and e.fresh is fresh]
        entries = [e for e in of_rollout if e.ticket_id and e.pair_id in pairs]
        self.all = [Ticket(e, pairs[e.pair_id], answers[str(e.ticket_id)]) for e in _in_order(entries)]

    def greatest_wealth(self, at: float) -> float:
        """Return the greatest wealth that the answers given by then allow."""
        return max_wealth([max(ticket.possible(at), default=-1.0) for ticket in self.all])

    def greatest_harm(self, at: float) -> float:
        """Return the greatest that harm may have been: in the order of the tickets, no failure is later than counted.

        The deployer reads the pairs in their order, and pairs that wait for a ticket as won, so its own is no greater.
        """
        return max_wealth([max((-x for x in ticket.possible(at)), default=-1.0) for ticket in self.all])

    def greatest_futility(self, at: float) -> float:
        """Return the greatest that the odds may have been, for the same reason."""
        return max_futility([min(ticket.possible(at), default=1.0) for ticket in self.all])

    def count(self, at: float, sign: int) -> int:
        """Return how many may have counted as a win (1), a loss (-1), or anything at all (0)."""
        found = [ticket.possible(at) for ticket in self.all]
        return sum(any(x * sign > 0 or sign == 0 for x in outcomes) for outcomes in found)


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.order or 0)


def ledger_problems(history: History) -> Iterator[str]:
    """Compare the ledger with the events: nothing counted twice, nothing invented, nothing lost."""
    by_rollout = defaultdict[tuple[str, bool], list[Entry]](list)
    for entry in history.entries:
        by_rollout[entry.rollout_id, entry.fresh].append(entry)
    for (rollout_id, fresh), entries in by_rollout.items():
        of_rollout = [pair for pair in history.pairs if pair.rollout_id == rollout_id and pair.fresh is fresh]
        pairs = {pair.pair_id: pair for pair in of_rollout}
        for entry in entries:
            if entry.pair_id not in pairs:
                yield f"{rollout_id}: {entry.pair_id} is in the ledger, and nobody compared it"
            elif entry.ticket_id and entry.agree:
                yield f"{rollout_id}: {entry.ticket_id} was drawn for a pair that agrees"
        with_ticket = [entry for entry in entries if entry.ticket_id]
        subjects = [entry.subject for entry in with_ticket]
        if doubled := {subject for subject in subjects if subjects.count(subject) > 1}:
            yield f"{rollout_id}: {len(doubled)} subjects bet twice ({min(doubled)})"
        orders = sorted(entry.order or 0 for entry in with_ticket)
        first = 1 + len([e for e in by_rollout.get((rollout_id, False), ()) if e.ticket_id]) if fresh else 1
        if orders != list(range(first, first + len(orders))):
            yield f"{rollout_id}: its tickets are not in one order"
        if fresh and len(orders) > _FRESH_TICKETS:
            yield f"{rollout_id}: people were asked about {len(orders)} pairs after its promotion"
        yield from _answer_problems(rollout_id, Tickets(history, rollout_id, fresh=fresh).all)
        yield from _lost_pairs(rollout_id, entries, of_rollout)


def _answer_problems(rollout_id: str, tickets: Sequence[Ticket]) -> Iterator[str]:
    """A ticket's outcome is that of the first of its answers. What came before a counted answer is counted, too."""
    counted, uncounted = dict[int, Place](), list[tuple[Place, str]]()
    for ticket in tickets:
        answers = ticket.answers
        fits = [n for n in range(len(answers) + 1) if ticket.outcome(answers[:n]) == ticket.entry.outcome]
        if not fits:
            yield f"{rollout_id}: {ticket.entry.ticket_id} counts {ticket.entry.outcome}, which no answer says"
            continue
        for answer in answers[: fits[0]]:
            counted[answer.place[0]] = max(answer.place, counted.get(answer.place[0], answer.place))
        uncounted += [(answer.place, str(ticket.entry.ticket_id)) for answer in answers[fits[-1] :]]
    lost = {ticket for place, ticket in uncounted if place < counted.get(place[0], (place[0], -1))}
    if lost:
        yield f"{rollout_id}: the answers to {len(lost)} tickets were lost ({min(lost)})"


def _lost_pairs(rollout_id: str, entries: Sequence[Entry], of_rollout: Sequence[Pair]) -> Iterator[str]:
    """What was read after the rollout's end is in no ledger. What comes before a stored pair was read before it.

    Of a pair that was published twice, since a crash came before the note of it, the first one may have been stored.
    """
    stored = {entry.pair_id for entry in entries}
    first, last, lost = dict[str, Place](), dict[int, Place](), list[Pair]()
    for pair in of_rollout:
        first[pair.pair_id] = min(pair.place, first.get(pair.pair_id, pair.place))
    for pair_id, place in first.items():
        if pair_id in stored:
            last[place[0]] = max(place, last.get(place[0], place))
    lost = [p for p in of_rollout if p.pair_id not in stored and p.place < last.get(p.place[0], (p.place[0], -1))]
    if lost:
        yield f"{rollout_id}: {len(lost)} pairs were lost ({lost[0].pair_id})"
