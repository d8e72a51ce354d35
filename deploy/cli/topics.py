"""`ratchet topics`: compares the broker's topics with the catalog, and sets them as the catalog says."""

from __future__ import annotations

import typer

from deploy.cli.output import say, show_blocks
from shared.kafka.topics import correct_topics, create_topics, find_drift, wanted_topics
from shared.report.blocks import Table
from shared.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Compare the broker's topics with the catalog, and correct them.")


@app.command("list")
def list_topics() -> None:
    """Show every topic of the catalog with its settings, and where the broker's differs. Exits with 1 where one does.

    Missing topics are created when services start; existing ones are never changed by them.
    """
    settings = Settings.load()
    drift = find_drift(settings)
    topics = wanted_topics(settings)
    of_all = set.intersection(*(set(topic.configs.items()) for topic in topics))
    rows = []
    for topic in topics:
        own = "\n".join(f"{name}={value}" for name, value in topic.configs.items() if (name, value) not in of_all)
        differences = "\n".join(f"{d.setting} {d.found}, not {d.wanted}" for d in drift if d.topic == topic.name)
        rows.append((topic.name, topic.partitions, _retention(topic.configs), own, differences or "the same"))
    show_blocks(Table(("topic", "partitions", "retention", "settings", "on the broker"), rows, whole=("topic",)))
    say(f"Every topic also has {', '.join(f'{name}={value}' for name, value in sorted(of_all))}.")
    if any(difference.correctable for difference in drift):
        say("To set the topics as the catalog says: ratchet topics correct")
    raise typer.Exit(bool(drift))


@app.command()
def correct() -> None:
    """Create missing topics, and set the others' retention, compaction and size limit as the catalog says.

    Partitions and replication stay: keys would move to other partitions. A shorter retention deletes records.
    `ratchet topics list` shows beforehand what differs.
    """
    settings = Settings.load()
    created, corrected, remaining = create_topics(settings), correct_topics(settings), find_drift(settings)
    lines = [f"{name}: created" for name in created]
    lines += [f"{difference}: set" for difference in corrected]
    lines += [f"{difference}: left as it is" for difference in remaining]
    lines.append(f"{len(created)} created, {len(corrected)} settings corrected, {len(remaining)} still differ")
    say("\n".join(lines))


def _retention(configs: dict[str, str]) -> str:
    milliseconds = int(configs["retention.ms"])
    if configs["cleanup.policy"] == "compact":
        return "last value per key"
    days = milliseconds // 86_400_000
    return "forever" if milliseconds < 0 else f"{days} day{'s' if days != 1 else ''}"
