"""Whole models by name: woken when they are asked, two at most, and ended with the server, each a process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deploy.devstack.model_server.pool import ModelPool
from deploy.devstack.ports import take_ports
from shared.errors import DependencyUnavailable
from tests.conftest import ROOT
from tests.unit.deploy.devstack.model_servers import publish_model, stand_in
from tests.unit.shared.adapter_folders import write_adapter
from tests.waiting import PATIENCE_SECONDS, until

CHAT = "/v1/chat/completions"


def children() -> dict[str, psutil.Process]:
    """The stand-ins that run as children of this process, by model."""
    return stand_ins(psutil.Process().children())


def stand_ins(processes: list[psutil.Process]) -> dict[str, psutil.Process]:
    commands = {process: process.cmdline() for process in processes if process.status() != psutil.STATUS_ZOMBIE}
    return {argv[2]: process for process, argv in commands.items() if argv[1:2] and "stand_in_model" in argv[1]}


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[ModelPool]:
    pool = ModelPool(stand_in, tmp_path / "logs")
    yield pool
    await pool.close()
    assert children() == {}


async def use(pool: ModelPool, name: str, folder: Path) -> None:
    async with pool.awake(name, folder):
        pass


async def test_a_model_starts_when_it_is_asked_and_once_for_all_who_ask(pool: ModelPool, tmp_path: Path) -> None:
    assert children() == {}
    await asyncio.gather(*(use(pool, "a", tmp_path) for _ in range(5)))
    (process,) = children().values()
    await use(pool, "a", tmp_path)
    assert children() == {"a": process}


async def test_two_are_awake_and_the_least_recently_used_one_falls_asleep(pool: ModelPool, tmp_path: Path) -> None:
    for name in ("a", "b", "a", "c"):
        await use(pool, name, tmp_path)
        assert len(children()) <= 2
    assert set(children()) == {"a", "c"}
    await use(pool, "b", tmp_path)
    assert set(children()) == {"b", "c"}


async def test_one_that_answers_a_request_is_not_stopped_though_it_was_used_longest_ago(
    pool: ModelPool, tmp_path: Path
) -> None:
    async with pool.awake("a", tmp_path):
        await use(pool, "b", tmp_path)
        await use(pool, "c", tmp_path)
        assert set(children()) == {"a", "c"}


async def test_a_third_model_is_refused_while_two_are_busy(pool: ModelPool, tmp_path: Path) -> None:
    async with pool.awake("a", tmp_path):
        async with pool.awake("b", tmp_path):
            with pytest.raises(DependencyUnavailable, match="a and b are awake and busy, so c cannot be woken"):
                await use(pool, "c", tmp_path)
            assert set(children()) == {"a", "b"}
        await use(pool, "c", tmp_path)
        assert set(children()) == {"a", "c"}


async def test_one_that_is_awake_answers_while_another_one_starts(pool: ModelPool, tmp_path: Path) -> None:
    await use(pool, "a", tmp_path)
    starting = asyncio.create_task(use(pool, "mute", tmp_path))
    await until(lambda: "mute" in children())
    await use(pool, "a", tmp_path)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert set(children()) == {"a"}


async def test_one_that_ends_while_it_starts_is_an_error_with_the_end_of_its_log(
    pool: ModelPool, tmp_path: Path
) -> None:
    with pytest.raises(DependencyUnavailable, match=r"broken did not start(.*\n)*the weights do not fit"):
        await use(pool, "broken", tmp_path)
    async with pool.awake("a", tmp_path), pool.awake("b", tmp_path):
        assert set(children()) == {"a", "b"}, "it takes nobody's place"


async def test_one_that_did_not_start_is_started_again_when_it_is_asked_again(tmp_path: Path) -> None:
    """A full memory or disk may have been why."""
    names = iter(["broken", "a"])
    pool = ModelPool(lambda _, folder, port: stand_in(next(names), folder, port), tmp_path / "logs")
    with pytest.raises(DependencyUnavailable):
        await use(pool, "a", tmp_path)
    await use(pool, "a", tmp_path)
    assert set(children()) == {"a"}
    await pool.close()


async def test_one_that_does_not_answer_in_time_is_stopped(tmp_path: Path) -> None:
    pool = ModelPool(stand_in, tmp_path / "logs", start_seconds=0.5)
    with pytest.raises(DependencyUnavailable, match="mute does not answer after 0 s"):
        await use(pool, "mute", tmp_path)
    assert children() == {}


async def test_one_that_was_killed_is_noticed_and_started_again(pool: ModelPool, tmp_path: Path) -> None:
    await use(pool, "a", tmp_path)
    killed = children()["a"]
    killed.kill()
    await until(lambda: killed.status() == psutil.STATUS_ZOMBIE)
    await use(pool, "a", tmp_path)
    assert children()["a"].pid != killed.pid


async def test_closing_while_one_starts_ends_it(tmp_path: Path) -> None:
    pool = ModelPool(stand_in, tmp_path / "logs")
    starting = asyncio.create_task(use(pool, "mute", tmp_path))
    await until(children)
    await pool.close()
    assert children() == {}
    assert isinstance((await asyncio.gather(starting, return_exceptions=True))[0], DependencyUnavailable)


class Server:
    """A model server as a process, and a client of it."""

    def __init__(self, home: Path) -> None:
        self.home, (port,) = home, take_ports(1)
        argv = [sys.executable, "-m", "tests.unit.deploy.devstack.model_servers", str(home), str(port)]
        self.process = subprocess.Popen([*argv, "http://127.0.0.1:9"], cwd=ROOT)
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS)

    async def until_ready(self) -> None:
        async def answers() -> bool:
            try:
                return (await self.client.get("/health")).is_success
            except httpx.ConnectError:
                return False

        await until(answers)

    async def ask(self, model: str, **fields: Any) -> httpx.Response:
        return await self.client.post(CHAT, json={"model": model, **fields})

    def children(self) -> dict[str, psutil.Process]:
        return stand_ins(psutil.Process(self.process.pid).children())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    for name in ("shop-a", "shop-b", "shop-c", "broken-d"):
        publish_model(tmp_path, name)
    server = Server(tmp_path)
    await server.until_ready()
    yield server
    server.process.kill()
    server.process.wait()
    await server.client.aclose()


async def test_a_request_is_answered_by_the_model_that_it_names(server: Server) -> None:
    for name in ("shop-a", "shop-b", "shop-c"):
        answer = (await server.ask(name, temperature=0)).json()
        assert answer == {"model": name, "path": CHAT, "body": {"model": name, "temperature": 0}}
    assert set(server.children()) == {"shop-b", "shop-c"}


async def test_an_unknown_name_is_a_404_in_openais_form_that_lists_what_there_is(server: Server) -> None:
    answer = await server.ask("shop-z")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("model_not_found", "invalid_request_error")
    assert "shop-a, shop-b, shop-c" in error["message"]
    assert (await server.ask("../models/shop-a")).status_code == 404
    assert (await server.client.post(CHAT, content=b"{")).status_code == 400
    listed = (await server.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["broken-d", "shop-a", "shop-b", "shop-c"]


async def test_an_adapters_request_goes_on_to_vllm(server: Server) -> None:
    write_adapter(server.home / "artifacts" / "adapters" / "shop-e", "base")
    assert "shop-e" in (await server.client.get("/v1/models")).text
    answer = await server.ask("shop-e")
    assert answer.status_code == 503 and "http://127.0.0.1:9 does not answer" in answer.text
    assert server.children() == {}


async def test_what_is_no_plain_model_is_never_loaded(server: Server) -> None:
    publish_model(server.home, "shop-f", auto_map="code.py")
    answer = await server.ask("shop-f")
    assert answer.status_code == 422 and "auto_map" in answer.text
    assert server.children() == {}


async def test_a_stream_passes_piece_by_piece(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    folder.mkdir()
    async with server.client.stream("POST", CHAT, json={"model": "shop-a", "stream": str(folder)}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        pieces = answer.aiter_bytes()
        for number in range(3):  # The next piece is written only once this one has come.
            (folder / str(number)).touch()
            assert (await anext(pieces)).strip() == b"data: piece %d" % number


async def test_a_third_model_gets_a_503_while_two_are_busy(server: Server, tmp_path: Path) -> None:
    done = tmp_path / "done"
    busy = [asyncio.create_task(server.ask(name, wait=str(done))) for name in ("shop-a", "shop-b")]
    await until(lambda: set(server.children()) == {"shop-a", "shop-b"})
    refused = await server.ask("shop-c")
    assert refused.status_code == 503 and "retry-after" in refused.headers
    assert "shop-a and shop-b are awake and busy" in refused.json()["error"]["message"]
    done.touch()
    assert {(await task).status_code for task in busy} == {200}
    assert (await server.ask("shop-c")).status_code == 200


async def test_a_model_that_does_not_start_is_a_503_with_its_last_words(server: Server) -> None:
    answer = await server.ask("broken-d")
    assert answer.status_code == 503 and "the weights do not fit" in answer.json()["error"]["message"]


async def test_one_that_is_killed_while_it_answers_is_said(server: Server, tmp_path: Path) -> None:
    asked = asyncio.create_task(server.ask("shop-a", wait=str(tmp_path / "never")))
    await until((tmp_path / "never.asked").exists)
    server.children()["shop-a"].kill()
    answer = await asked
    assert answer.status_code == 503 and "the model shop-a broke off" in answer.json()["error"]["message"]
    async with asyncio.timeout(PATIENCE_SECONDS):  # Its end may be seen a moment after that of the connection.
        while (await server.ask("shop-a")).status_code != 200:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_model_outlives_the_server(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    """Not even one that answers a request."""
    await server.ask("shop-a")
    busy = asyncio.create_task(server.ask("shop-b", wait=str(tmp_path / "never")))
    await until(lambda: len(server.children()) == 2)
    left = list(server.children().values())
    os.kill(server.process.pid, number)
    await asyncio.to_thread(server.process.wait, PATIENCE_SECONDS)
    await until(lambda: not any(process.is_running() for process in left))
    await asyncio.gather(busy, return_exceptions=True)
