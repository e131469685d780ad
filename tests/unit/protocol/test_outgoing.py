"""The line of messages to the broker: bounded, in order, and QoS 1 over any number of connections."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.errors import Retryable
from regatta_protocol.outgoing import Outgoing


def test_nothing_is_taken_without_a_connection() -> None:
    """Before open and after close."""
    line = Outgoing(10, 1000)
    for _ in range(2):
        with pytest.raises(Retryable, match="not connected"):
            line.add("t", b"", 1, False)
        line.open()
        line.close()


def test_both_limits_hold_and_free_with_done() -> None:
    """Sent messages count until they are done."""
    line = Outgoing(2, 10)
    line.open()
    first = line.add("t", b"12345", 1, False)
    with pytest.raises(Retryable, match="limits 2 and 10"):
        line.add("t", b"123456", 1, False)
    line.add("t", b"", 1, False)
    with pytest.raises(Retryable, match="2 messages of 5 bytes"):
        line.add("t", b"", 1, False)

    assert line.done(first) is None  # not sent yet
    assert line.take() is not None
    assert line.done(first) is not None
    line.add("t", b"1234567890", 1, False)
    assert not line.idle()


@given(st.lists(st.sampled_from([0, 1])), st.integers(0, 20), st.integers(0, 20))
def test_what_was_not_acknowledged_goes_out_again_in_order(
    kinds: list[Literal[0, 1]], sent: int, acknowledged: int
) -> None:
    """After a lost connection exactly the unacknowledged QoS 1 messages wait, in the order of their coming."""
    line = Outgoing(1000, 1000)
    line.open()
    tokens = [line.add("t", b"x", kind, False) for kind in kinds]
    taken = [message.token for _ in range(sent) if (message := line.take())]
    for token in taken[:acknowledged]:
        line.done(token)

    line.close()
    line.open()

    done = set(taken[:acknowledged])
    expected = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 1 and token not in done]
    again = [message.token for _ in kinds if (message := line.take())]
    assert again == expected
