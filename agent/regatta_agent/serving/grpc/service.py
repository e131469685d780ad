"""The service `inference.GRPCInferenceService` at one endpoint, on the worker's loop.

A message is translated (translating.py, methods.py) and asked of the handler that answers HTTP; nothing here knows
models. Each method is registered as one that takes a stream, for grpcio then calls it before it receives a message: the
token is checked first, and how much is received at once is this side's to say (intake.py). On the wire they are the
same.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError

from regatta_agent.serving.exchange import Endpoint, Request, Response
from regatta_agent.serving.grpc.intake import Intake
from regatta_agent.serving.grpc.methods import METHODS, Method
from regatta_agent.serving.grpc.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from regatta_agent.serving.grpc.refusing import Context, Refused, refused_by
from regatta_agent.serving.grpc.translating import is_typed, message_of_answer, request_of_message
from regatta_agent.serving.http import HttpServer
from regatta_protocol.errors import Rejected

__all__ = ["InferenceService"]

T = TypeVar("T")
_SERVICE = "inference.GRPCInferenceService"
_READ_AT_ONCE_BYTES = 16_384  # of elements one by one, as of JSON; more are read and written on a thread of their own


class InferenceService:
    """What is answered at one endpoint."""

    def __init__(
        self,
        model: str,
        endpoint: Endpoint,
        server: HttpServer,
        intake: Intake,
        reader: Executor,
        on_invalid: Callable[[], None],
    ) -> None:
        """Keep who answers.

        Args:
            model: the one that is served, for a message that names none.
            endpoint: what callers must give here, and whether they are on this machine.
            server: whose handler, limits and bound on bytes held this shares.
            intake: of all endpoints.
            reader: a thread for what is long.
            on_invalid: told of an infer message that does not get as far as the handler.
        """
        self._model = model
        self._endpoint = endpoint
        self._server = server
        self._intake = intake
        self._reader = reader
        self._on_invalid = on_invalid
        self._idle_streams: set[asyncio.Task[object]] = set()
        self._leaving = False
        self._may_end = asyncio.Event()  # calls may; cleared while they are held back
        self._may_end.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the methods for a server of grpc.aio."""
        calls: dict[str, Callable[[Context], Awaitable[bytes]]] = {
            name: partial(self._ask_method, method) for name, method in METHODS.items()
        }
        calls["ModelInfer"] = self._infer_once
        methods: dict[str, grpc.RpcMethodHandler[object, bytes]] = {
            name: grpc.stream_unary_rpc_method_handler(self._guarded(call)) for name, call in calls.items()
        }
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(_SERVICE, methods)

    def hold_back(self) -> None:
        """Let no call end from now on."""
        self._may_end.clear()

    def leave(self) -> None:
        """Let calls end, and streams: those that wait for a request now, each other one with the answer to its last."""
        self._may_end.set()
        self._leaving = True
        for task in self._idle_streams:
            task.cancel()

    def _guarded(self, call: Callable[[Context], Awaitable[bytes]]) -> Callable[[object, Context], Awaitable[bytes]]:
        async def respond(_requests: object, context: Context) -> bytes:
            try:
                self._check_token(context)
                answer = await call(context)
                await self._may_end.wait()
                return answer
            except Refused as err:
                ending = err.ending
            await self._may_end.wait()
            return await ending.of(context)

        return respond

    def _check_token(self, context: Context) -> None:
        token = self._endpoint.token
        if token is None:
            return
        given = next((value for key, value in context.invocation_metadata() or () if key == "authorization"), "")
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, b"Bearer " + token):
            text = "give the token of this endpoint in the call's metadata: authorization: Bearer TOKEN"
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, text)

    async def _ask_method(self, method: Method, context: Context) -> bytes:
        async with self._intake.message(context) as data:
            try:
                request = method.asked(data, self._model)
            except DecodeError as err:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"the message is not of this method: {err}") from err
        response = await self._ask(request._replace(local=self._endpoint.local))
        if response.status != 200 and not method.may_say_no:
            raise refused_by(response)
        return method.answered(response).SerializeToString()

    async def _infer_once(self, context: Context) -> bytes:
        request, typed = await self._received(context)
        return (await self._answered(request, context, typed=typed)).SerializeToString()

    async def _received(self, context: Context) -> tuple[Request, bool]:
        """Return the request of a call; the message that it was is let go of here. See _translated."""
        async with self._intake.message(context) as data:
            return await self._translated(self._read(data))

    async def _stream(self, _requests: object, context: Context) -> None:
        try:
            self._check_token(context)
            with self._intake.stream():
                while isinstance(data := await self._next(context), bytes):
                    answer = await self._infer_in_stream(data, context)
                    await context.write(answer.SerializeToString())
            return
        except Refused as err:
            ending = err.ending
        await ending.of(context)

    async def _next(self, context: Context) -> object:
        """Return the next message of a stream; what is no bytes is its end."""
        idle_s, task = self._server.limits.idle_timeout_s, asyncio.current_task()
        assert task is not None
        self._idle_streams.add(task)
        try:
            if self._leaving:
                raise asyncio.CancelledError
            return await asyncio.wait_for(context.read(), idle_s)
        except asyncio.TimeoutError:
            text = f"nothing came over the stream for {idle_s:g} s: open it again"
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
        except asyncio.CancelledError:
            if not self._leaving:
                raise
            text = "this worker leaves: open the stream again, to the next one"
            raise Refused(grpc.StatusCode.UNAVAILABLE, text, 1) from None
        finally:
            self._idle_streams.discard(task)

    async def _infer_in_stream(self, data: bytes, context: Context) -> ModelStreamInferResponse:
        """Return the answer or the error: one of a request does not end the stream."""
        named = ModelInferResponse()
        try:
            message = self._read(data)
            named.id = message.id
            request, typed = await self._translated(message)
            return ModelStreamInferResponse(infer_response=await self._answered(request, context, typed=typed))
        except Refused as err:
            return ModelStreamInferResponse(error_message=err.ending.details, infer_response=named)

    def _read(self, data: bytes) -> ModelInferRequest:
        try:
            return ModelInferRequest.FromString(data)
        except DecodeError as err:
            self._on_invalid()
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no ModelInferRequest: {err}") from err

    async def _translated(self, message: ModelInferRequest) -> tuple[Request, bool]:
        """Return the request that a message is, and whether it gave elements one by one."""
        typed = is_typed(message)
        translate = partial(request_of_message, message, local=self._endpoint.local)
        try:
            if typed and message.ByteSize() > _READ_AT_ONCE_BYTES:
                return await self._elsewhere(translate), typed
            return translate(), typed
        except Rejected as err:
            self._on_invalid()
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(err)) from err

    async def _answered(self, request: Request, context: Context, *, typed: bool) -> ModelInferResponse:
        remaining_s = context.time_remaining()  # until the caller's deadline
        timeout_us = None if remaining_s is None else int(remaining_s * 1e6)
        response = await self._ask(request._replace(timeout_us=timeout_us))
        if response.status != 200:
            raise refused_by(response)
        translate = partial(message_of_answer, response, typed=typed)
        is_long = typed and len(response.body) > _READ_AT_ONCE_BYTES
        return await self._elsewhere(translate) if is_long else translate()

    async def _ask(self, request: Request) -> Response:
        """Return what the handler answers, now or later; a caller that left meanwhile is answered in vain.

        Raises:
            Refused: when too many bytes wait for answers already.
        """
        answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        size_bytes = len(request.body)
        self._intake.hold(size_bytes)

        def respond(response: Response) -> None:
            self._intake.let_go(size_bytes)
            if not answered.done():
                answered.set_result(response)

        self._server.last_request_at = time.monotonic()
        self._server.handler(request, respond)
        return await answered

    async def _elsewhere(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)
