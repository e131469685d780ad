"""Bytes to messages: everything bounded, every refusal says where it is wrong."""

from __future__ import annotations

import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from left_behind import blocks_left
from regatta_protocol.codec import (
    MAX_INFLATED_BYTES,
    MAX_PAYLOAD_BYTES,
    decode,
    decode_zlib,
    encode,
    encode_zlib,
)
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.messages import Get, Presence, Response

DIGEST = "a" * 64


@given(st.booleans(), st.text(max_size=50))
def test_round_trips(up: bool, boot: str) -> None:
    """Plain and compressed, a message comes back equal."""
    presence = Presence(up=up, boot=boot)

    assert decode(Presence, encode(presence)) == presence
    assert decode_zlib(Presence, encode_zlib(presence)) == presence


def test_unset_fields_do_not_travel() -> None:
    """None is left out, not sent as null."""
    assert encode(Response(id="a", error="no")) == b'{"schema_version":1,"id":"a","error":"no","retryable":false}'


@given(st.binary(max_size=300))
def test_noise_is_rejected(data: bytes) -> None:
    """Foreign bytes give Rejected and nothing else."""
    for decoder in (decode, decode_zlib):
        with pytest.raises(Rejected):
            decoder(Get, data)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{}", "transfer"),
        ('{"transfer":1,"digest":"zz","chunk_bytes":1024,"ranges":[[0,1]]}', "digest"),
        (f'{{"transfer":1,"digest":"{DIGEST}","chunk_bytes":1,"ranges":[[0,1]]}}', "chunk_bytes"),
        (f'{{"transfer":1,"digest":"{DIGEST}","chunk_bytes":1024,"ranges":[]}}', "ranges"),
        (f'{{"transfer":1,"digest":"{DIGEST}","chunk_bytes":1024,"ranges":[[0,"x"]]}}', "ranges.0.1"),
        ("[" * 10_000, "the whole message"),
        ("nonsense", "the whole message"),
    ],
)
def test_a_refusal_names_the_first_wrong_field(text: str, where: str) -> None:
    """The operator learns which field it was; deep nesting is no crash."""
    with pytest.raises(Rejected, match=f"this is no Get: {where}: "):
        decode(Get, text.encode())


def test_too_long_a_message_is_refused_both_ways() -> None:
    """At the limit it passes, over it is TooLarge."""
    with pytest.raises(TooLarge, match="over the limit"):
        encode(Presence(up=True, boot="x" * MAX_PAYLOAD_BYTES))
    with pytest.raises(TooLarge, match="over the limit of 10"):
        decode(Presence, b"x" * 11, 10)
    with pytest.raises(TooLarge):
        decode_zlib(Presence, b"x" * (MAX_PAYLOAD_BYTES + 1))
    data = encode(Presence(up=True, boot="x" * 100))
    assert decode(Presence, data, len(data)).boot == "x" * 100


def test_a_small_message_cannot_become_a_large_one() -> None:
    """A zlib bomb ends at the limit of inflation."""
    bomb = zlib.compress(b" " * (MAX_INFLATED_BYTES * 10))

    assert len(bomb) < MAX_PAYLOAD_BYTES
    with pytest.raises(TooLarge, match="inflates to over"):
        decode_zlib(Presence, bomb)


def test_a_cut_compressed_message_is_rejected() -> None:
    """At every length but the whole."""
    data = encode_zlib(Presence(up=True, boot="some text that does not compress to nothing"))

    for length in range(len(data)):
        with pytest.raises(Rejected):
            decode_zlib(Presence, data[:length])


def test_texts_of_messages_are_not_kept() -> None:
    """Each message has an id of its own; what is read and dropped is gone."""
    numbers = itertools.count()

    left = blocks_left(lambda: decode(Response, b'{"id":"r%032d","error":"e"}' % next(numbers)), 400)

    assert left < 20
