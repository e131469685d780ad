"""Infer requests from their arrival to their answer: read, queued, computed, answered, counted. Runs on the loop.

A request whose JSON is short is read on the loop, while the engine computes others; a long one on a thread of its own.
Bounds: so many requests wait or are computed (429 with Retry-After from the measured time of service), and a request
whose own `timeout` has passed is not computed (504).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from regatta_agent.serving.engine import Engine, Finished
from regatta_agent.serving.exchange import Request, Respond, Response, error_response
from regatta_agent.serving.feedback import Feedback
from regatta_agent.serving.guarded import RunnerLost
from regatta_agent.serving.inference import InferRequest, SharedMemory, parse_infer, render_infer
from regatta_agent.serving.lane import Batches, Expired, Lane
from regatta_agent.serving.mirror import Mirror
from regatta_agent.serving.placed import Answer, PlacedModel
from regatta_agent.serving.routing import first_to_be_done
from regatta_agent.serving.window import Outcome, Tally, Timing
from regatta_protocol.errors import Rejected

__all__ = ["Inferences", "not_ready", "of_a_web_page"]

logger = logging.getLogger(__name__)

_HEADER_LENGTH = b"inference-header-content-length"
_MIRRORED = b"regatta-mirrored"  # another worker has answered it
_RETRY = ((b"retry-after", b"1"),)
_JSON, _BINARY = b"application/json", b"application/octet-stream"
_BRIEF_BYTES = 262_144  # a larger body may take long to check however brief the others were
_FAILURES = 3  # in a row, after which a companion takes no more requests
_READ_AT_ONCE_BYTES = 16_384  # of JSON: 64 KiB of it take 1 ms to read


class _Ticket(NamedTuple):
    """A request that was read. Made for each, and so a tuple: frozen dataclasses take several times as long to make."""

    request: Request
    infer: InferRequest
    shared: SharedMemory | None
    respond: Respond
    received_ns: int
    read_ns: int  # how long reading took
    brief: bool
    priority: int
    deadline_ns: int | None


class _Inferred(NamedTuple):
    """What the engine's thread made of a request."""

    response: Response
    answer: Answer
    render_ns: int


@dataclass(eq=False)  # one that is opened anew is another
class _Post:
    """A placement at work. `candidate` is None for the first, whose candidate a failover may change."""

    candidate: str | None
    placed: PlacedModel
    lane: Lane[_Ticket, _Inferred]
    failures: int = 0  # in a row


class Inferences:
    """The infer route of one model, which is served once a placement is added."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tally: Tally,
        feedback: Feedback,
        queue_length: int,
        shared: SharedMemory | None,
    ) -> None:
        self._loop = loop
        self._tally = tally
        self._feedback = feedback
        self._queue_length = queue_length
        self._shared = shared
        self._reading = 0  # requests on the reader's thread
        self._reader = Engine(loop, queue_length, name="reading")
        self._reader_runs = False
        self._posts: list[_Post] = []
        self.mirror: Mirror | None = None  # while there is a next version to show requests to

    @property
    def placed(self) -> PlacedModel | None:
        """The first placement, or None until it is there."""
        return self._posts[0].placed if self._posts else None

    def add(
        self, candidate: str | None, placed: PlacedModel, engine: Engine, *, expected_ns: int | None = None,
        brief_ns: int = 0, batches: Batches | None = None,
    ) -> None:  # fmt: skip
        """Let a placement take requests: the first has candidate None, the others are its companions; see Lane.

        A companion of which nothing is known is thought to take what the first does.
        """

        def compute(tickets: Sequence[_Ticket]) -> list[_Inferred | Exception]:
            return self._compute(placed, tickets)

        def finish(ticket: _Ticket, result: _Inferred | Exception, began_ns: int) -> None:
            self._finish(post, ticket, result, began_ns)

        if expected_ns is None and self._posts:
            expected_ns = self._posts[0].lane.mean_ns
        lane = Lane(self._loop, engine, compute, finish, expected_ns=expected_ns, brief_ns=brief_ns)
        lane.batches = batches
        post = _Post(candidate, placed, lane)
        self._posts.append(post)

    def has(self, candidate: str) -> bool:
        """Return whether a companion takes requests."""
        return any(post.candidate == candidate for post in self._posts)

    def dismiss(self, candidate: str, why: str) -> None:
        """Give a companion no more requests; those that it has are computed by it, or by the first when it fails."""
        for post in [post for post in self._posts[1:] if post.candidate == candidate]:
            self._dismiss(post, why)

    def _dismiss(self, post: _Post, why: str) -> None:
        if post in self._posts:
            logger.warning("event=companion_left candidate=%s reason=%s", post.candidate, why)
            self._posts.remove(post)

    @property
    def pending(self) -> int:
        """How many requests are read, wait or are computed."""
        return self._reading + sum(post.lane.pending for post in self._posts)

    def start(self, request: Request, respond: Respond) -> None:
        """Answer `request`, now or later."""
        received_ns = time.perf_counter_ns()
        refusal = self._refusal(request)
        if refusal is not None:
            outcome, response = refusal
            self._refuse(request, respond, outcome, response)
            return
        if _json_bytes(request) <= _READ_AT_ONCE_BYTES:
            try:
                ticket = self._read(request, respond, received_ns)
            except Rejected as err:
                self._refuse(request, respond, Outcome.INVALID, error_response(400, str(err)))
                return
            self._route(ticket)
        else:
            self._read_elsewhere(request, respond, received_ns)

    def _refusal(self, request: Request) -> tuple[Outcome, Response] | None:
        """Return why the request is not even read, or None."""
        if request.headers.get(b"content-encoding", b"identity") != b"identity":
            return Outcome.INVALID, error_response(415, "send the body without content-encoding")
        if b"origin" in request.headers:
            return Outcome.INVALID, of_a_web_page()
        if not self._posts:
            return Outcome.REFUSED, not_ready()
        if self.pending >= self._queue_length:
            text = f"{self.pending} requests wait already: slow down, and try again after Retry-After"
            after = ((b"retry-after", b"%d" % min(post.lane.retry_after_s() for post in self._posts)),)
            return Outcome.REFUSED, error_response(429, text, after)
        return None

    def _read(self, request: Request, respond: Respond, received_ns: int) -> _Ticket:
        began_ns = time.perf_counter_ns()
        shared = self._shared if request.local else None
        infer = parse_infer(request.body, request.headers.get(_HEADER_LENGTH), shared)
        waits_us = request.timeout_us
        if waits_us is not None and (infer.timeout_us is None or waits_us < infer.timeout_us):
            infer = infer._replace(timeout_us=waits_us)
        read_ns = time.perf_counter_ns() - began_ns
        deadline_ns = None if infer.timeout_us is None else received_ns + infer.timeout_us * 1000
        brief = len(request.body) <= _BRIEF_BYTES and not (infer.stacked or infer.processed)
        return _Ticket(request, infer, shared, respond, received_ns, read_ns, brief, infer.priority, deadline_ns)

    def _read_elsewhere(self, request: Request, respond: Respond, received_ns: int) -> None:
        if not self._reader_runs:
            self._reader_runs = True
            self._reader.start()

        def done(finished: Finished[_Ticket]) -> None:
            self._reading -= 1
            if isinstance(finished.error, Rejected):
                self._refuse(request, respond, Outcome.INVALID, error_response(400, str(finished.error)))
            elif finished.value is None:
                self._fail(request, respond, finished.error)
            else:
                self._route(finished.value)

        self._reading += 1
        self._reader.submit(lambda: self._read(request, respond, received_ns), done)

    def _refuse(self, request: Request, respond: Respond, outcome: Outcome, response: Response) -> None:
        if _MIRRORED not in request.headers:
            self._tally.count(outcome, Timing(0))
        respond(response)

    def _fail(self, request: Request, respond: Respond, error: Exception | None) -> None:
        logger.error("event=inference_failed model=%s", self._tally.placement.model, exc_info=error)
        self._refuse(request, respond, Outcome.FAILURE, error_response(500, f"the model failed: {str(error)[:500]}"))

    def _route(self, ticket: _Ticket) -> None:
        """Give a request to the placement that is expected to be done with it first.

        One that would have to wait there goes where nothing was measured for long, when that may do it earlier.
        """
        posts, chosen = self._posts, 0
        if len(posts) > 1:
            chosen = first_to_be_done([post.lane.delay_ns() for post in posts])
            if posts[chosen].lane.pending:
                chosen = first_to_be_done([post.lane.hoped_ns(ticket.received_ns) for post in posts])
        posts[chosen].lane.put(ticket)

    def _compute(self, placed: PlacedModel, tickets: Sequence[_Ticket]) -> list[_Inferred | Exception]:
        """Return what comes of each request; on the engine's thread."""
        if len(tickets) == 1:
            return [self._render(tickets[0], placed.infer(tickets[0].infer))]
        answers = placed.infer_together([ticket.infer for ticket in tickets])
        return [self._render(*pair) for pair in zip(tickets, answers, strict=True)]

    def _render(self, ticket: _Ticket, answer: Answer | Exception) -> _Inferred | Exception:
        if isinstance(answer, Exception):
            return answer
        began_ns = time.perf_counter_ns()
        placement = self._tally.placement
        try:
            body, header_length = render_infer(
                placement.model, placement.version, ticket.infer.id, answer.tensors, ticket.shared
            )
        except Rejected as err:
            return err
        if header_length is None:
            response = Response(200, body, _JSON)
        else:
            response = Response(200, body, _BINARY, ((_HEADER_LENGTH, b"%d" % header_length),))
        return _Inferred(response, answer, time.perf_counter_ns() - began_ns)

    def _finish(self, post: _Post, ticket: _Ticket, result: _Inferred | Exception, began_ns: int) -> None:
        if post.candidate is not None and self._fell_through(post, result):
            self._posts[0].lane.put(ticket)
        elif isinstance(result, Expired):
            waited_us = (time.perf_counter_ns() - ticket.received_ns) // 1000
            text = (
                f"the request's timeout of {ticket.infer.timeout_us} us passed after {waited_us} us in the queue, "
                "and it was not computed: give it longer, or ask less at once"
            )
            self._refuse(ticket.request, ticket.respond, Outcome.EXPIRED, error_response(504, text))
        elif isinstance(result, Rejected):
            self._refuse(ticket.request, ticket.respond, Outcome.INVALID, error_response(400, str(result)))
        elif isinstance(result, Exception):
            self._fail(ticket.request, ticket.respond, result)
        else:
            ticket.respond(result.response)
            if _MIRRORED not in ticket.request.headers:
                self._count(post, ticket, result, began_ns)
                if self.mirror is not None:
                    self.mirror.see(ticket.request, ticket.infer, result.response)

    def _count(self, post: _Post, ticket: _Ticket, result: _Inferred, began_ns: int) -> None:
        """Count an answered request."""
        total_ns = time.perf_counter_ns() - ticket.received_ns
        answer = result.answer
        if ticket.infer.id is not None:
            self._feedback.remember(ticket.infer.id, answer.predicted)
        if answer.first_of_batch:
            self._tally.count_batch(answer.batch, post.candidate)
        queue_ns = began_ns - ticket.received_ns - ticket.read_ns
        input_ns, output_ns = ticket.read_ns + answer.prepare_ns, answer.conclude_ns + result.render_ns
        timing = Timing(total_ns, queue_ns, input_ns, answer.compute_ns, output_ns)
        self._tally.count(Outcome.SUCCESS, timing, post.candidate)

    def _fell_through(self, post: _Post, result: _Inferred | Exception) -> bool:
        """Return whether a companion failed the request; one that keeps failing, or is gone, takes no more."""
        failed = isinstance(result, Exception) and not isinstance(result, (Rejected, Expired))
        post.failures = post.failures + 1 if failed else 0
        if isinstance(result, RunnerLost) or post.failures >= _FAILURES:
            self._dismiss(post, str(result))
        return failed


def _json_bytes(request: Request) -> int:
    """Return how long the JSON part of the body is said to be."""
    text = request.headers.get(_HEADER_LENGTH, b"")
    return int(text) if text.isdigit() and len(text) <= 12 else len(request.body)


def not_ready() -> Response:
    """Return the refusal while the model is being loaded."""
    return error_response(503, "the model is being loaded and tested: try again", _RETRY)


def of_a_web_page() -> Response:
    """Return the refusal of what a browser posts: a web page may reach a loopback port, and ids may be guessed."""
    return error_response(403, "requests of web pages are not answered here")
