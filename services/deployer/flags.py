"""A task's flags, and what each change of a rollout does to them.

    ratchet.<task>.primary    on: everyone is served the payload's adapter        ratchet.<task>.shadow   sample %
    ratchet.<task>.rollback   on: `previous` of primary's payload serves          ratchet.<task>.canary   user %
    ratchet.<task>.control    user % whom `previous` serves for a while after a promotion; it comes with the first one

The deployer writes flags only when a rollout changes. Between changes they belong to the operator: what was turned by
hand stays, and pauses the candidate until a person says that it goes on. While a change is being made, Unleash's log
tells a hand from what the change has set itself. Writes are ordered so that a crash between any two leaves every user
with a proven adapter, or with the canary that has earned its share.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from schemas.rollouts import Stage
from services.deployer.clients import FlagAdmin, FlagState, Strategy
from services.deployer.rollout import ENDED, Rollout
from shared.errors import DependencyUnavailable

logger = logging.getLogger(__name__)
FLAGS = ("primary", "rollback", "canary", "shadow")
_NEWEST = 20
"""Entries of Unleash's log among which the newest is looked for: as many as tasks set flags at once, and more."""


@dataclass(frozen=True)
class TaskFlags:
    """A task's flags as they are in Unleash. None: never created, or deleted."""

    primary: FlagState | None
    rollback: FlagState | None
    canary: FlagState | None
    shadow: FlagState | None

    @property
    def rolled_back(self) -> bool:
        return self.rollback is not None and self.rollback.enabled

    @property
    def rolled_back_in_part(self) -> str:
        """Why rollback may not be for everyone, in words that follow who serves; "" where it is."""
        left_out = self.rollback.left_out if self.rollback is not None and self.rollback.strategies else ""
        return f", perhaps not everyone: the flag has {left_out}" if left_out else ""

    @property
    def gone(self) -> dict[str, str]:
        """The flags that somebody archived or deleted, each with that in words: they are off and stay so."""
        states = {"primary": self.primary, "rollback": self.rollback, "canary": self.canary, "shadow": self.shadow}
        archived = {
            name: f"{name} is archived" for name, state in states.items() if state is not None and state.archived
        }
        return archived | {name: f"{name} was deleted" for name, state in states.items() if state is None}

    def canary_share(self, rollout: Rollout) -> int | None:
        """Return the share of users whom the candidate serves as canary; None: nobody, everybody, or it is not known.

        It is known where a hand has changed nothing but the share: then users are in it as before, more or fewer.
        """
        if self.canary is None or not self.canary.enabled or self.rolled_back:
            return None
        serving = self.primary.payloads if self.primary is not None and self.primary.enabled else []
        if any((payload or {}).get("adapter") == rollout.candidate for payload in serving):
            return None
        share = self.canary.percent or None
        wanted = canary_strategy(replace(rollout, canary_percent=share or 0)).body(flag_name(rollout.task, "canary"))
        return share if self.canary.matches(wanted) else None

    def differences(self, rollout: Rollout) -> dict[str, str]:
        """Return for each flag that an operator changed since the rollout's last change how it is now, in words."""
        found = self.gone
        if self.primary is None or not self.primary.enabled:
            how = found.get("primary", "primary is off")
            found["primary"] = f"{how}: the base model serves"
        elif self.primary.payload is None:
            found["primary"] = "primary has no payload that can be read: the base model serves"
        elif self.primary.payload != primary_strategy(rollout).payload:
            found["primary"] = f"primary's payload is {self.primary.payload}"
        elif left_out := self.primary.left_out:
            found["primary"] = f"primary is not for everyone: it has {left_out}"
        if self.rolled_back:
            found["rollback"] = f"rollback is on: the previous adapter serves{self.rolled_back_in_part}"
        if rollout.active and self.canary is not None and not self.canary.archived:  # In shadow it is off.
            strategy = canary_strategy(rollout)
            if not self.canary.matches(strategy.body(flag_name(rollout.task, "canary"))):
                found["canary"] = _unlike("canary", self.canary, strategy)
        if rollout.compared and self.shadow is not None and not self.shadow.archived:
            strategy = shadow_strategy(rollout)
            if not self.shadow.matches(strategy.body(flag_name(rollout.task, "shadow"))):
                found["shadow"] = _unlike("shadow", self.shadow, strategy)
        for name, state, wanted in (
            ("canary", self.canary, rollout.stage is Stage.CANARY),
            ("shadow", self.shadow, rollout.compared),
        ):
            if name not in self.gone and state is not None and state.enabled != wanted:
                found[name] = f"{name} is {'on' if state.enabled else 'off'}"
        return found

    def changed_by_hand(self, rollout: Rollout) -> dict[str, str]:
        """Return the differences that are no part of a change whose flags may not all be set, nor of undoing it.

        Before an entry the flags were whatever they were: see `changed_by_hand_since`.
        """
        if rollout.enters:
            return {}
        found = self.differences(rollout.standing)
        if rollout.resumes:  # Canary and shadow are as a hand left them: see `changed_by_hand_since`.
            return {flag: words for flag, words in found.items() if flag in ("primary", "rollback", *self.gone)}
        if not rollout.flags_pending or rollout.before is None:
            return found
        other = rollout.at(rollout.before)
        promoted = next((way for way in (rollout, other) if way.stage is Stage.PROMOTED), None)
        if promoted is not None and not _has_payload(self.primary, promoted):
            return found  # A promotion sets primary first, and undoing it last: no other flag is its work.
        one, another = self.differences(rollout), self.differences(other)
        return {flag: words for flag, words in found.items() if flag in one and flag in another}


def _unlike(name: str, state: FlagState, wanted: Strategy) -> str:
    """Say how a flag's strategy is not as wanted."""
    if state.several or state.added:
        return f"{name} has {' and '.join(filter(None, (state.several, state.added)))}"
    if state.payload != wanted.payload:
        return f"{name} has no payload" if state.payload is None else f"{name}'s payload is {state.payload}"
    if state.percent != wanted.percent:
        return f"{name} has another share than {wanted.percent} %: {state.percent} %"
    return f"{name} has another type, stickiness, group or variant"


def _has_payload(primary: FlagState | None, rollout: Rollout) -> bool:
    return primary is not None and primary.payload == primary_strategy(rollout).payload


def flag_name(task: str, flag: str) -> str:
    """Return the full name of a task's flag."""
    return f"ratchet.{task}.{flag}"


def task_of(flag: str) -> str | None:
    """Return the task of a flag by its full name; None: it is none of ours."""
    owner, _, rest = flag.partition(".")
    task, _, name = rest.rpartition(".")
    return task if owner == "ratchet" and name in (*FLAGS, "control") and task else None


def primary_strategy(rollout: Rollout) -> Strategy:
    return Strategy(variant="primary", payload={"adapter": rollout.primary, "previous": rollout.previous})


def canary_strategy(rollout: Rollout) -> Strategy:
    """The canary is sticky by user and grouped by rollout, so that each candidate meets other users first.

    Whoever is in it stays in it when its share rises.
    """
    return Strategy(
        percent=rollout.canary_percent or rollout.spec.rollout.canary_steps[0],
        stickiness="userId",
        group=rollout.rollout_id,
        variant="canary",
        payload={"adapter": rollout.candidate},
    )


def shadow_strategy(rollout: Rollout) -> Strategy:
    """The shadow service passes the prediction's id as the user, so that a redelivery is sampled the same way."""
    return Strategy(percent=rollout.spec.rollout.shadow_percent, stickiness="userId", group=rollout.rollout_id)


def control_strategy(rollout: Rollout) -> Strategy:
    """The control is sticky by user, too, and another draw of them than the canary was."""
    return Strategy(
        percent=rollout.spec.rollout.control_percent, stickiness="userId", group=f"{rollout.rollout_id}.control"
    )


async def read_control(admin: FlagAdmin, rollout: Rollout) -> bool:
    """Return True if the control's flag is as the rollout's promotion left it."""
    flag = flag_name(rollout.task, "control")
    state = await admin.read(flag)
    return state is not None and state.enabled and state.matches(control_strategy(rollout).body(flag))


async def read_flags(admin: FlagAdmin, task: str) -> TaskFlags:
    return TaskFlags(*[await admin.read(flag_name(task, flag)) for flag in FLAGS])


async def newest_entry(admin: FlagAdmin) -> int | None:
    """Return the newest entry of Unleash's log; None: the log is away, and with it what it tells.

    An empty log is away: Unleash returns none while its database does not answer. The newest by their time are not
    always those with the highest numbers, where flags of several tasks are set at once.
    """
    try:
        newest = await admin.newest_changes(_NEWEST)
    except DependencyUnavailable:
        return None
    return max((entry for entry, _ in newest), default=None)


async def changed_by_hand_since(admin: FlagAdmin, rollout: Rollout, flags: TaskFlags) -> dict[str, str]:
    """Return, in words, each flag of which Unleash's log has a change that is no part of the rollout's last one.

    Its state cannot tell a write that is missing from one that a hand took back, nor, in a resumption, what a hand did
    before it from what it did after. Raises DependencyUnavailable while the log is away.
    """
    if rollout.log_entry is None:
        return {}
    names = {flag_name(rollout.task, flag): flag for flag in FLAGS}
    events = await admin.events_since(list(names), rollout.log_entry)
    if rollout.enters:  # Unleash adds its default strategy to a new primary, which is turned on before it has one.
        primary = flag_name(rollout.task, "primary")
        events = [event for event in events if (event.flag, event.kind) != (primary, "feature-strategy-add")]
    wanted, differences = _wanted(rollout), flags.differences(rollout)
    by_hand = {names[event.flag] for event in events if not event.leads_to(*wanted[names[event.flag]])}
    return {flag: differences.get(flag, f"{flag} was changed") for flag in FLAGS if flag in by_hand}


def _wanted(rollout: Rollout) -> dict[str, tuple[Strategy | None, bool | None]]:
    """Return to what the last change of a rollout sets its flags, None what it leaves as it is."""
    canary, shadow = canary_strategy(rollout), shadow_strategy(rollout)
    untouched: tuple[Strategy | None, bool | None] = None, None
    if rollout.stage is Stage.PROMOTED:
        primary = primary_strategy(rollout), True
        replays = (shadow, True) if rollout.control else (None, False)
        return {"primary": primary, "rollback": untouched, "canary": (None, False), "shadow": replays}
    if rollout.enters:
        primary, off = (primary_strategy(rollout), True), (Strategy(), False)
        return {"primary": primary, "rollback": off, "canary": (canary, False), "shadow": (shadow, True)}
    rollback: tuple[Strategy | None, bool | None] = Strategy(), None  # A strategy that is missing is added.
    serves = rollout.stage is Stage.CANARY
    return {"primary": untouched, "rollback": rollback, "canary": (canary, serves), "shadow": (shadow, True)}


async def apply_flags(admin: FlagAdmin, rollout: Rollout) -> None:
    """Set the flags as the rollout's last change wants them. Idempotent."""
    if rollout.active and rollout.before is not None and not rollout.adds_traffic:
        await _undo(admin, rollout, rollout.at(rollout.before))
    elif rollout.stage is Stage.SHADOW:
        await _to_shadow(admin, rollout)
    elif rollout.stage is Stage.CANARY:
        flag = flag_name(rollout.task, "canary")
        await admin.set_strategy(flag, canary_strategy(rollout))
        await admin.switch(flag, True)
        await _replay(admin, rollout)
    elif rollout.stage is Stage.PROMOTED:
        if rollout.before is not None:  # Else it is the end of its control, and primary is as a hand may have left it.
            await admin.set_strategy(flag_name(rollout.task, "primary"), primary_strategy(rollout))
            await admin.switch(flag_name(rollout.task, "primary"), True)
        await _stop(admin, rollout.task, replays=rollout.control)
        if rollout.control:  # The adapter before it is replayed meanwhile.
            await _replay(admin, rollout)
        await _set_control(admin, rollout)
    elif rollout.stage in ENDED:
        if rollout.before is not None:
            await _restore(admin, "primary", primary_strategy, rollout, rollout.at(rollout.before))
        await _stop(admin, rollout.task)
        await _set_control(admin, rollout)
    elif rollout.stage is Stage.ROLLED_BACK:
        await _roll_back(admin, rollout)
        await _stop(admin, rollout.task)
        await _set_control(admin, rollout)


async def _roll_back(admin: FlagAdmin, rollout: Rollout) -> None:
    """Turn rollback on, for everyone. Where a hand archived or deleted it, primary gets the adapter before instead."""
    rollback = flag_name(rollout.task, "rollback")
    state = await admin.read(rollback)
    if state is None or state.archived:
        restored = replace(rollout, previous=rollout.primary)  # As `next_serving_state` will say.
        await admin.set_strategy(flag_name(rollout.task, "primary"), primary_strategy(restored))
        return
    await admin.set_strategy(rollback, Strategy())
    await admin.switch(rollback, True)


async def _undo(admin: FlagAdmin, rollout: Rollout, rise: Rollout) -> None:
    """Take back what a rise had set, the last flag first. What a hand has turned off meanwhile stays as it is.

    A canary of a candidate that is back in shadow goes off, whoever turned it on: that only takes traffic away.
    """
    flags = await read_flags(admin, rollout.task)
    by_hand = flags.changed_by_hand(rollout)
    with contextlib.suppress(DependencyUnavailable):  # Less traffic waits for no log.
        by_hand |= await changed_by_hand_since(admin, rollout, flags)
    await _set_control(admin, rollout)
    if "shadow" not in by_hand:
        await admin.switch(flag_name(rollout.task, "shadow"), True)
    await _restore(admin, "canary", canary_strategy, rollout, rise)
    serves = rollout.stage is Stage.CANARY
    if "canary" not in by_hand or not serves:
        await admin.switch(flag_name(rollout.task, "canary"), serves)
    await _restore(admin, "primary", primary_strategy, rollout, rise)


async def _restore(
    admin: FlagAdmin, name: str, strategy: Callable[[Rollout], Strategy], rollout: Rollout, rise: Rollout
) -> None:
    """Give a flag that has the rise's strategy the rollout's; another one is of a hand.

    Where the two serve different adapters, as primary's do, it gets it also if a hand has added to the rise's strategy:
    else the candidate would serve on whomever that leaves in. One that is archived serves nobody, and takes no write.
    """
    flag = flag_name(rollout.task, name)
    state = await admin.read(flag)
    if state is None:
        return
    wanted, own = strategy(rise), strategy(rollout)
    is_added_to = wanted.payload != own.payload and wanted.payload in state.payloads
    if not (is_added_to or state.matches(wanted.body(flag))):
        return
    if state.archived:
        logger.warning("%s is archived as it was: before it is turned on again, give it %s", flag, own.body(flag))
        return
    await admin.set_strategy(flag, own)


async def _set_control(admin: FlagAdmin, rollout: Rollout) -> None:
    flag = flag_name(rollout.task, "control")
    if rollout.control:
        description = f"Share of {rollout.task}'s users on the previous adapter after a promotion"
        await admin.ensure(flag, description, control_strategy(rollout))
        state = await admin.read(flag)
        if state is not None and state.archived:
            return  # A hand on it, which ends the control.
        await admin.set_strategy(flag, control_strategy(rollout))
    await admin.switch(flag, rollout.control)


async def _to_shadow(admin: FlagAdmin, rollout: Rollout) -> None:
    """Make the flags that do not exist, and set them for a candidate that enters. What a hand turns meanwhile stays.

    But for the canary, which goes off whoever turned it on: that only takes traffic away.
    """
    names = {flag: flag_name(rollout.task, flag) for flag in FLAGS}
    flags = await read_flags(admin, rollout.task)
    by_hand = await changed_by_hand_since(admin, rollout, flags)
    described = {
        "primary": (f"Serves {rollout.task}'s adapter; off: the base model", primary_strategy(rollout)),
        "rollback": (f"On: {rollout.task}'s previous adapter serves", Strategy()),
        "canary": (f"Share of {rollout.task}'s users on the candidate", canary_strategy(rollout)),
        "shadow": (f"Share of {rollout.task}'s traffic replayed", shadow_strategy(rollout)),
    }
    await admin.switch(names["canary"], False)  # First: it is about to have this candidate's payload.
    for flag, (description, strategy) in described.items():
        if flag not in by_hand:
            await admin.ensure(names[flag], description, strategy, on=flag == "primary")
    if not {"primary", "rollback"} & by_hand.keys():
        await _restore_primary(admin, rollout)
    if "canary" not in by_hand | flags.gone:
        await admin.set_strategy(names["canary"], canary_strategy(rollout))
    if "shadow" not in by_hand:
        await _replay(admin, rollout)


async def _restore_primary(admin: FlagAdmin, rollout: Rollout) -> None:
    """Correct a primary that names another adapter than serves: after a rollback, or one of another base model."""
    primary, rollback = flag_name(rollout.task, "primary"), flag_name(rollout.task, "rollback")
    serving, state = await admin.read(primary), await admin.read(rollback)
    restores = state is not None and state.enabled and rollout.primary == rollout.previous
    if serving is not None and not serving.archived:
        is_outdated = rollout.resets is not None and (serving.payload or {}).get("adapter") == rollout.resets
        if restores or is_outdated:
            await admin.set_strategy(primary, primary_strategy(rollout))
    if restores:
        # The rolled-back adapter is the primary now (see `next_serving_state`): it serves before and after each write.
        await admin.switch(rollback, False)


async def _replay(admin: FlagAdmin, rollout: Rollout) -> None:
    shadow = flag_name(rollout.task, "shadow")
    await admin.set_strategy(shadow, shadow_strategy(rollout))
    await admin.switch(shadow, True)


async def _stop(admin: FlagAdmin, task: str, *, replays: bool = False) -> None:
    await admin.switch(flag_name(task, "canary"), False)
    if not replays:
        await admin.switch(flag_name(task, "shadow"), False)
