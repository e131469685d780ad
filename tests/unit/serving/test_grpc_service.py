"""The gRPC service beside a handler of the test's own, over a real channel."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="the extra grpc is not installed")

import grpc

from regatta_agent.serving.exchange import Endpoint, Request, Respond, json_response
from regatta_agent.serving.grpc.intake import Intake
from regatta_agent.serving.grpc.service import InferenceService
from regatta_agent.serving.http import HttpServer
from regatta_agent.serving.spec import ServeLimits

_LIVE = "/inference.GRPCInferenceService/ServerLive"


def test_calls_that_are_held_back_end_when_the_worker_leaves(tmp_path: Path) -> None:
    """They have been asked of the handler, and their answers wait for grpcio's word that no more may come."""
    assert asyncio.run(_hold_back(f"unix:{tmp_path}/s")) == ([False, True], b"\x08\x01")


async def _hold_back(address: str) -> tuple[list[bool], bytes]:
    """Return whether a call had ended before and after the service let it, and its answer."""
    asked = asyncio.Event()

    def handle(_request: Request, respond: Respond) -> None:
        asked.set()
        respond(json_response({"live": True}))

    server = HttpServer(handle, ServeLimits(), body_limit_bytes=1 << 20)
    listening = grpc.aio.server()
    listening.add_insecure_port(address)
    with ThreadPoolExecutor(1) as reader:
        service = InferenceService("m", Endpoint(), server, Intake(server), reader, lambda: None)
        listening.add_generic_rpc_handlers((service.handlers(),))
        await listening.start()
        async with grpc.aio.insecure_channel(address) as channel:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_LIVE)
            service.hold_back()
            call = asyncio.ensure_future(ask(b"", timeout=20))
            await asyncio.wait_for(asked.wait(), 20)
            await asyncio.wait({call}, timeout=0.2)
            ended = [call.done()]
            service.leave()
            answer = await call
            ended.append(call.done())
        await listening.stop(None)
    return ended, answer
