"""A long body is received past the parser, and all that holds for a request holds for one that has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from regatta_agent.serving.exchange import Endpoint, Request, Respond, Response
from regatta_agent.serving.http import HttpServer
from regatta_agent.serving.long_body import LONG_BYTES
from regatta_agent.serving.spec import ServeLimits

_SIZE = 3 * LONG_BYTES + 17
_BODY = bytes(range(256)) * (_SIZE // 256) + bytes(_SIZE % 256)
_HEAD = b"POST /x HTTP/1.1\r\ncontent-length: %d\r\n\r\n"
_DEADLINE_S = 10.0

_Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, HttpServer], Awaitable[None]]


def _answer(request: Request, respond: Respond) -> None:
    respond(Response(200, b"%d %d" % (len(request.body), bytes(request.body) == _BODY)))


def _talk(folder: Path, talk: _Talk, body_limit_bytes: int = _SIZE) -> HttpServer:
    """Let `talk` use a connection, and return the server after its end."""
    server = HttpServer(_answer, ServeLimits(body_timeout_s=0.2), body_limit_bytes=body_limit_bytes)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        listener = await loop.create_unix_server(lambda: server.connection(Endpoint()), str(folder / "s"))
        reader, writer = await asyncio.open_unix_connection(str(folder / "s"))
        await asyncio.wait_for(talk(reader, writer, server), _DEADLINE_S)
        writer.close()
        listener.close()
        await _until(lambda: not server.connections)

    asyncio.run(run())
    return server


async def _until(probe: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not probe():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), _DEADLINE_S)


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)


@pytest.mark.parametrize("piece", [1000 + LONG_BYTES, 100_000, _SIZE])
def test_it_is_whole_and_what_is_pipelined_behind_it_is_answered_after_it(tmp_path: Path, piece: int) -> None:
    """However it comes in pieces: two long requests and a short one in between, one after another."""
    answers = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: HttpServer) -> None:
        long = _HEAD % _SIZE + _BODY
        sent = long + _HEAD % 3 + b"abc" + long
        for at in range(0, len(sent), piece):
            writer.write(sent[at : at + piece])
            await writer.drain()
        answers.extend([await _read_answer(reader) for _ in range(3)])

    server = _talk(tmp_path, talk)

    assert answers == [(200, b"%d 1" % _SIZE), (200, b"3 0"), (200, b"%d 1" % _SIZE)]
    assert server.held_bytes == 0


def test_one_that_stops_coming_is_told_so_and_the_rest_thrown_away(tmp_path: Path) -> None:
    """408 after the body's time, whatever comes then."""
    answers, ends = [], []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: HttpServer) -> None:
        writer.write(_HEAD % _SIZE + _BODY[:LONG_BYTES])
        await _until(lambda: server.held_bytes == LONG_BYTES)
        answer = asyncio.ensure_future(_read_answer(reader))
        while not answer.done():
            server.sweep()
            await asyncio.sleep(0.001)
        answers.append(answer.result())
        writer.write(_BODY[LONG_BYTES:])
        ends.append(await reader.read())

    server = _talk(tmp_path, talk)

    assert [status for status, _ in answers] == [408]
    assert (ends, server.held_bytes) == ([b""], 0)


def test_a_client_that_dies_within_it_leaves_nothing(tmp_path: Path) -> None:
    """Neither its bytes nor its connection are counted any more."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: HttpServer) -> None:
        writer.write(_HEAD % _SIZE + _BODY[: 2 * LONG_BYTES])
        await _until(lambda: server.held_bytes == 2 * LONG_BYTES)
        writer.transport.abort()

    assert _talk(tmp_path, talk).held_bytes == 0


def test_it_is_refused_when_others_have_taken_the_room(tmp_path: Path) -> None:
    """503 in the middle: what its headers promised had room then."""
    answers = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: HttpServer) -> None:
        writer.write(_HEAD % _SIZE + _BODY[:LONG_BYTES])
        await _until(lambda: server.held_bytes == LONG_BYTES)
        server.held_bytes += 8 * _SIZE
        writer.write(_BODY[LONG_BYTES : 2 * LONG_BYTES])
        answers.append(await _read_answer(reader))
        server.held_bytes -= 8 * _SIZE

    server = _talk(tmp_path, talk)

    assert [status for status, _ in answers] == [503]
    assert server.held_bytes == 0


def test_a_target_that_is_no_path_is_refused_when_the_body_is_whole(tmp_path: Path) -> None:
    """As with a short body: 400, and what comes behind it is thrown away."""
    answers = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: HttpServer) -> None:
        writer.write((_HEAD % _SIZE).replace(b"/x", b"http://[") + _BODY + _HEAD % 3 + b"abc")
        answers.append(await _read_answer(reader))

    _talk(tmp_path, talk)

    assert [status for status, _ in answers] == [400]
    assert b"no path" in answers[0][1]
