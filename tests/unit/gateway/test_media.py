"""Pictures, sound and documents of requests: dropped or kept, as their task says."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.conversation import Media
from schemas.predictions import PredictionLogged
from schemas.task_settings import MediaPolicy
from schemas.tasks import TaskSpec
from services.gateway.formats.conversation import opening_text
from services.gateway.formats.media import MEDIA_KINDS, MediaReferences
from services.gateway.recording.event_log import SpoolUnavailable
from services.gateway.recording.media_folder import waiting_files
from shared.conversation import chat_messages, replay_request
from shared.privacy.encryption import Cipher, load_cipher
from shared.storage.media import MediaReader, MediaStore
from shared.storage.media_files import pack, unpack
from tests.unit.gateway.conftest import HAIKU, SUPPORT, Gateway, serving
from tests.unit.gateway.redacting import Blanks, set_up

KEEPING = HAIKU.model_copy(update={"name": "keeping", "media": MediaPolicy.KEEP})
PNG = b"\x89PNG a picture of Maria Gonzalez" * 100
DATA = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{DATA}"
PARTS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": URL, "detail": "high"}, "uuid": "u-1"},
    {"type": "image_url", "image_url": URL},
    {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
    {"type": "file", "file": {"filename": "Gonzalez.pdf", "file_data": f"data:application/pdf;base64,{DATA}"}},
    {"type": "image_embeds", "image_embeds": {"image_embeds": DATA, "image_grid_thw": "QUJD"}},
    {"type": "image_url", "image_url": {"url": "data:image/svg+xml,%3Csvg%3E no base64"}},
    {"type": "prompt_embeds", "data": DATA},
]
ADDRESSES: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    {"type": "video_url", "video_url": {"url": "s3://bucket/film.mp4"}},
    {"type": "file", "file": {"file_id": "file-123"}},
]


@pytest.fixture
async def keeping(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with serving(specs=(KEEPING, HAIKU), home=tmp_path) as gateway:
        yield gateway


async def ask(gateway: Gateway, *parts: dict[str, Any], **more: Any) -> Any:
    """Ask with these parts, and return what was logged of them."""
    messages = [{"role": "user", "content": list(parts)}]
    response = await gateway.http.post(
        "/v1/chat/completions", json={"model": "keeping", "messages": messages, "user": "customer-4711", **more}
    )
    assert response.status_code == 200, response.text
    return [part.media for part in gateway.log.events[-1].call.messages[-1].content]


def uploaded(home: Path) -> MediaReader:
    """A reader of a store that has what waits in the folder."""
    store = MediaStore(str(home / "artifacts"))
    for file in waiting_files(home / "media"):
        store.add(file.key, file.path.read_bytes())
    return MediaReader(store, load_cipher(home / "secrets", "media"))


def all_bytes_below(folder: Path) -> list[bytes]:
    """The contents and the names of all files."""
    paths = list(folder.rglob("*"))
    return [path.read_bytes() for path in paths if path.is_file()] + [path.name.encode() for path in paths]


def test_what_becomes_of_media_does_not_change_a_tasks_revision() -> None:
    assert HAIKU.media is MediaPolicy.DROP
    assert KEEPING.revision == HAIKU.model_copy(update={"name": "keeping"}).revision
    assert TaskSpec.model_validate_json(KEEPING.model_dump_json()).media is MediaPolicy.KEEP


async def test_kept_media_are_put_back_as_they_were_sent(keeping: Gateway, tmp_path: Path) -> None:
    media = await ask(keeping, *PARTS, {"type": "text", "text": "What is it?"})
    assert [found.size for found in media[:4]] == [len(PNG)] * 4
    assert [found.media_type for found in media[:6]] == [
        "image/png", "image/png", "audio/wav", "application/pdf", None, "image/svg+xml"
    ]  # fmt: skip
    event, reader = keeping.log.events[-1], uploaded(tmp_path)
    assert event.call.is_whole
    path, body = replay_request(event.call, load=reader.part)
    assert path == "/v1/chat/completions"
    assert body["messages"] == keeping.upstream.asked[0]["messages"]
    assert reader.file(media[2].key).content == PNG
    with pytest.raises(ValueError, match="image_url"):
        chat_messages(event.call.messages)


FIELDS = st.sampled_from(["url", "data", "file_data", "file_id", "image_url", "file", "input_audio", "format", "x"])
TEXTS = st.text(max_size=8) | st.sampled_from(["data:image/png;base64,QUJD", "data:", "data:,x", "QUJD", "https://x/y"])
VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | TEXTS, lambda inner: st.dictionaries(FIELDS, inner, max_size=3), max_leaves=5
)


@given(st.sampled_from(sorted(MEDIA_KINDS)), st.dictionaries(FIELDS, VALUES, max_size=4))
def test_whatever_a_part_has_it_is_put_back_as_it_was_sent_or_not_kept(kind: str, fields: dict[str, Any]) -> None:
    part, cipher = {**fields, "type": kind}, Cipher(b"k" * 32)
    references = MediaReferences(b"m" * 32).keeping("keeping", None)
    media = Media.model_validate(references.reference(kind, part))
    assert (media.key is None) == (references.collected is None)
    for item in references.collected or ():
        assert unpack(pack(item.surroundings, item.text[item.start :], item.sent_at, cipher), cipher).part == part


async def test_kept_media_of_the_responses_api_are_put_back_as_they_were_sent(keeping: Gateway, tmp_path: Path) -> None:
    keeping.upstream.answer = {"status": "completed", "output": []}
    parts = [
        {"type": "input_image", "image_url": URL, "detail": "auto"},
        {"type": "input_file", "filename": "a.pdf", "file_data": DATA},
        {"type": "input_text", "text": "What is it?"},
    ]
    given = [{"role": "user", "content": parts}]
    await keeping.http.post("/v1/responses", json={"model": "keeping", "input": given})
    asked = keeping.upstream.asked[0]["input"]
    _, body = replay_request(keeping.log.events[-1].call, load=uploaded(tmp_path).part)
    assert body["input"][1:] == asked == given


@pytest.mark.parametrize("more", [{}, {"prompt": "Once"}, {"prompt": ["Once", "Twice"]}])
async def test_prompts_of_embeddings_pass_and_are_media(keeping: Gateway, tmp_path: Path, more: dict[str, Any]) -> None:
    embeds = [DATA, base64.b64encode(b"other").decode()]
    texts = [more["prompt"]] if isinstance(more.get("prompt"), str) else more.get("prompt", [])
    keeping.upstream.answer = {
        "choices": [{"index": n, "text": f"a{n}", "finish_reason": "stop"} for n in range(2 + len(texts))]
    }
    for model in ("keeping", "haiku"):
        response = await keeping.http.post("/v1/completions", json={"model": model, "prompt_embeds": embeds, **more})
        assert response.status_code == 200
        assert keeping.upstream.asked[-1]["prompt_embeds"] == embeds
        assert keeping.upstream.asked[-1].get("prompt") == more.get("prompt")
    kept, dropped = keeping.log.events[: len(texts) + 2], keeping.log.events[len(texts) + 2 :]
    reader = uploaded(tmp_path)
    again = [replay_request(event.call, load=reader.part) for event in kept]
    asked = [{"prompt_embeds": text} for text in embeds] + [{"prompt": text} for text in texts]
    assert again == [("/v1/completions", body) for body in asked]
    assert [event.answers[0].text for event in kept] == [f"a{n}" for n in range(2 + len(texts))]
    media = dropped[0].call.messages[0].content[0].media
    assert (media.kind, media.size, media.key) == ("text", len(PNG), None)
    assert not dropped[0].call.is_whole
    assert not any(DATA[:40] in event.model_dump_json() for event in (*kept, *dropped))


@pytest.mark.parametrize("embeds", [7, [], [7], {"a": 1}])
async def test_prompts_of_embeddings_that_are_no_base64_are_refused(keeping: Gateway, embeds: Any) -> None:
    response = await keeping.http.post("/v1/completions", json={"model": "haiku", "prompt_embeds": embeds})
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("prompt_embeds", "prompt")


async def test_the_key_names_the_person_as_the_event_does(keeping: Gateway) -> None:
    (media,) = await ask(keeping, PARTS[0])
    event = keeping.log.events[-1]
    assert media.key.split("/")[:4] == ["media", "keeping", f"{event.occurred_at:%Y-%m-%d}", event.user_hash]
    (anonymous,) = await ask(keeping, PARTS[0], user=None)
    assert anonymous.key.split("/")[3] == "anonymous"


async def test_neither_content_nor_name_of_a_file_is_readable_in_the_folder_or_the_event(
    keeping: Gateway, tmp_path: Path
) -> None:
    await ask(keeping, *PARTS)
    stored = [*all_bytes_below(tmp_path), keeping.log.events[-1].model_dump_json().encode()]
    assert sum(map(len, stored)) > 4 * len(PNG)
    planted = (b"Maria", DATA[:40].encode(), b"Gonzalez.pdf", b"customer-4711")
    assert [word for word in planted for data in stored if word in data] == []
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "media").iterdir()} == {0o600}


async def test_a_redactor_that_replaces_every_text_changes_no_reference(keeping: Gateway) -> None:
    media = await ask(keeping, PARTS[0], PARTS[2], PARTS[3], ADDRESSES[0])
    event = keeping.log.events[-1].model_copy(update={"task": "haiku"})
    setup = await set_up(lambda _: Blanks())
    (clean,) = await setup.redact(event)
    redacted = PredictionLogged.model_validate(clean).call.messages[-1].content
    assert [part.media for part in redacted] == media


async def test_the_same_part_of_a_person_and_day_is_one_file(keeping: Gateway, tmp_path: Path) -> None:
    first, again = await ask(keeping, PARTS[0], PARTS[0])
    (later,) = await ask(keeping, PARTS[0])
    assert first.key == again.key == later.key
    other_detail, other_person = PARTS[0] | {"uuid": "u-2"}, "customer-4712"
    await ask(keeping, other_detail)
    await ask(keeping, PARTS[0], user=other_person)
    assert len(waiting_files(tmp_path / "media")) == 3


async def test_addresses_are_never_fetched(keeping: Gateway, tmp_path: Path) -> None:
    media = await ask(keeping, *ADDRESSES)
    assert [(found.key, found.size) for found in media] == [(None, None)] * 3
    assert waiting_files(tmp_path / "media") == []
    assert not keeping.log.events[-1].call.is_whole


def test_a_conversation_that_begins_with_a_kept_picture_begins_alike_on_each_day() -> None:
    def opening(day: str) -> str:
        media = {"kind": "image", "hash": "4711", "key": f"media/keeping/{day}/anonymous/4711"}
        return opening_text([{"role": "user", "content": [{"type": "image_url", "media": media}]}])

    assert opening("2026-12-01") == opening("2026-12-02")
    assert "4711" in opening("2026-12-01")


async def test_a_task_that_drops_media_writes_none(keeping: Gateway, tmp_path: Path) -> None:
    media = await ask(keeping, *PARTS, model="haiku")
    assert {found.key for found in media} == {None}
    assert len({found.hash for found in media}) == 5  # The first two have the same content.
    assert not (tmp_path / "media").exists()


async def test_a_full_folder_refuses_media_and_nothing_else(tmp_path: Path) -> None:
    options = len(PNG)
    async with serving(specs=(KEEPING,), home=tmp_path, media=options) as gateway:
        body = {"model": "keeping", "messages": [{"role": "user", "content": [PARTS[0]]}]}
        refused = await gateway.http.post("/v1/chat/completions", json=body)
        assert refused.status_code == 503
        assert "limit is reached" in refused.json()["error"]["message"]
        assert gateway.log.events == []
        assert (await gateway.ask(model="keeping")).status_code == 200


async def test_a_stream_whose_media_find_no_room_ends_with_an_error(tmp_path: Path) -> None:
    async with serving(specs=(KEEPING,), home=tmp_path, media=1) as gateway:
        body = {"model": "keeping", "messages": [{"role": "user", "content": [PARTS[0]]}], "stream": True}
        response = await gateway.http.post("/v1/chat/completions", json=body)
        assert "limit is reached" in response.text
        assert "[DONE]" not in response.text
        assert gateway.log.events == []


async def test_with_the_setting_answer_a_full_folder_answers_and_reports_unlogged(tmp_path: Path) -> None:
    options = 1
    async with serving(answer_when_full=True, specs=(KEEPING,), home=tmp_path, media=options) as gateway:
        body = {"model": "keeping", "messages": [{"role": "user", "content": [PARTS[0]]}]}
        response = await gateway.http.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.headers["x-ratchet-logged"]) == (200, "false")
        assert gateway.log.events == []


async def test_predictions_made_elsewhere_have_their_media_kept(keeping: Gateway, tmp_path: Path) -> None:
    item = {"task": "keeping", "messages": [{"role": "user", "content": [PARTS[0]]}], "answer": "x", "latency_ms": 1}
    response = await keeping.http.post("/v1/predictions", json=[{**item, "user": "customer-4711"}, item])
    assert response.status_code == 200, response.text
    events, reader = keeping.log.events, uploaded(tmp_path)
    assert [event.call.messages[-1].content[0].media.key.split("/")[3] for event in events] == [
        events[0].user_hash, "anonymous"
    ]  # fmt: skip
    assert [chat_messages(event.call.messages, reader.part)[-1]["content"] for event in events] == [[PARTS[0]]] * 2


async def test_a_picture_of_anthropics_api_is_put_back_as_the_model_server_got_it(
    keeping: Gateway, tmp_path: Path
) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    body = {"model": "keeping", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    response = await keeping.http.post("/v1/messages", json=body)
    assert response.status_code == 200, response.text
    messages = chat_messages(keeping.log.events[-1].call.messages, uploaded(tmp_path).part)
    assert messages == keeping.upstream.asked[0]["messages"]
    assert URL in str(messages)


async def test_other_requests_are_answered_while_twenty_megabytes_are_written(keeping: Gateway) -> None:
    large = base64.b64encode(os.urandom(20_000_000)).decode()
    references = MediaReferences(b"m" * 32).keeping("keeping", None)
    references.reference("input_audio", {"type": "input_audio", "input_audio": {"data": large}})
    writing, turns = asyncio.create_task(keeping.media.write(references.collected)), 0
    while not writing.done():
        await asyncio.sleep(0)
        turns += 1
    await writing
    assert turns > 100


class Disk:
    """What was synced to the disk, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[str] = []
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, descriptor: int) -> None:
        self.synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)


async def test_media_are_on_the_disk_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(specs=(KEEPING,), home=tmp_path) as gateway:
        disk = Disk(monkeypatch)
        await ask(gateway, PARTS[0])
        assert len(disk.synced) == 2  # The file and its folder.


async def test_a_disk_that_is_full_leaves_no_file_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(specs=(KEEPING,), home=tmp_path, media=2**30) as gateway:

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched, pytest.raises(SpoolUnavailable, match="No space left"):
            patched.setattr(os, "fsync", full)
            await gateway.media.write(kept(PARTS[0]))
        assert list((tmp_path / "media").iterdir()) == []
        await gateway.media.write(kept(PARTS[0]))
        (file,) = waiting_files(tmp_path / "media")
        assert unpack(file.path.read_bytes(), load_cipher(tmp_path / "secrets", "media")).part == PARTS[0]


async def test_room_that_an_upload_makes_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.recording.media_folder._MEASURE_SECONDS", 0.0)
    async with serving(specs=(KEEPING,), home=tmp_path, media=2 * len(PNG)) as gateway:
        await gateway.media.write(kept(PARTS[0]))
        with pytest.raises(SpoolUnavailable):
            await gateway.media.write(kept(PARTS[2]))
        waiting_files(tmp_path / "media")[0].path.unlink()
        await gateway.media.write(kept(PARTS[2]))


def kept(part: dict[str, Any], user: str | None = None) -> Any:
    references = MediaReferences(b"m" * 32).keeping(SUPPORT.name, user)
    references.reference(part["type"], part)
    return references.collected
