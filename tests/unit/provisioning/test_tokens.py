"""Tokens: what is minted is parsed back, and whatever was done to one is found."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.errors import Misuse, Rejected
from regatta_provisioning.tokens import EnrollmentToken, mint_token, new_secret, parse_token, token_hash

FINGERPRINT = "ab" * 32
hosts = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,40}[a-z0-9])?", fullmatch=True)
urls = st.builds(
    lambda host, port, path: f"https://{host}{f':{port}' if port else ''}{path}",
    hosts,
    st.none() | st.integers(1, 65535),
    st.sampled_from(["", "/fleet"]),
)


@given(urls, st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24))
def test_a_token_carries_what_it_was_made_of(url: str, fingerprint: bytes, secret: bytes) -> None:
    text = base64.urlsafe_b64encode(secret).decode()

    assert parse_token(mint_token(url, fingerprint.hex(), text)) == EnrollmentToken(url, fingerprint.hex(), text)


@given(st.text(max_size=300))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for candidate in (text, "rgt1." + text):
        with pytest.raises(Rejected, match="token"):
            parse_token(candidate)


@given(st.data())
def test_one_changed_or_missing_character_is_found(data: st.DataObject) -> None:
    secret = data.draw(st.binary(min_size=24, max_size=24))  # drawn, for what is drawn after it depends on it
    token = mint_token("https://fleet.example:8443", FINGERPRINT, base64.urlsafe_b64encode(secret).decode())
    place = data.draw(st.integers(5, len(token) - 2))  # the last character may hold unused bits
    letter = data.draw(st.sampled_from("ABCxyz019-_").filter(lambda one: one != token[place]))

    with pytest.raises(Rejected, match=r"cut off or changed|carries"):
        parse_token(token[:place] + letter + token[place + 1 :])
    with pytest.raises(Rejected, match="copy it whole"):
        parse_token(token[:place])


def test_white_space_of_a_wrapped_line_does_not_matter() -> None:
    token = mint_token("https://fleet.example/", FINGERPRINT, new_secret())

    assert parse_token(f"  {token[:40]}\n{token[40:]}\r\n").api_url == "https://fleet.example"


@pytest.mark.parametrize(
    "url",
    [
        "http://fleet.example",
        "https://",
        "https://user:word@fleet.example",
        "https://fleet.example/?a=b",
        "https://fleet.example/#part",
        "https://fleet.example:99999",
        "https://fleet.example:0",
        "https://flé.example",
        "https://a b",
        "https://" + "a" * 600,
        "ftp://fleet.example",
        "",
    ],
)
def test_only_plain_https_addresses_make_a_token(url: str) -> None:
    with pytest.raises(Misuse, match="no token can be made"):
        mint_token(url, FINGERPRINT, new_secret())


def test_a_token_never_shows_its_secret() -> None:
    """Neither in repr, nor in an error about it."""
    secret = new_secret()
    token = mint_token("https://fleet.example", FINGERPRINT, secret)
    encoded = token.partition(".")[2]

    with pytest.raises(Rejected) as caught:
        parse_token(token[:-3])

    assert encoded[:20] not in str(caught.value)
    assert secret not in repr(parse_token(token))


def test_a_hash_stands_for_a_secret() -> None:
    first, second = new_secret(), new_secret()

    assert token_hash(first) == token_hash(first) != token_hash(second)
    assert first not in token_hash(first)
    with pytest.raises(Misuse, match="new_secret"):
        mint_token("https://fleet.example", FINGERPRINT, "short")
    with pytest.raises(Misuse, match="SHA-256"):
        mint_token("https://fleet.example", "AB", first)
