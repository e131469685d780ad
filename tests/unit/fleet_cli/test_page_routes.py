"""The page over HTTP: who may see it, what it sends along, and that nothing a device says becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from regatta_fleet import figures, page
from regatta_fleet.schemas import DeviceDetail, FleetEvent, RolloutDetail, RolloutState, WaveDetail, WaveState
from regatta_fleet.testing import FakeFleet
from regatta_fleet.testing_app import fake_app
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId
from sample_fleet import device, harbor

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&{{7*7}}\x1b[31m\u202e"


@pytest.fixture
def fleet() -> FakeFleet:
    return harbor()


def browser(fleet: FakeFleet) -> TestClient:
    return TestClient(fake_app(fleet), base_url="http://127.0.0.1:8090")


def unlocked(fleet: FakeFleet) -> TestClient:
    found = browser(fleet)
    found.get("/", params={"token": fleet.token})
    return found


class Markup(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_without_the_token_there_is_nothing_to_see(fleet: FakeFleet) -> None:
    """Neither page tells anything of the fleet, and a wrong token or cookie is no better than none."""
    for path in ("/", "/?token=wrong", "/device/quay-1", "/?token="):
        answer = browser(fleet).get(path)
        assert answer.status_code == 401
        assert "regatta up" in answer.text
        assert "quay" not in answer.text
    forged = browser(fleet)
    forged.cookies.set(page.cookie_name(8090), fleet.token)
    assert forged.get("/").status_code == 401


def test_the_token_becomes_a_cookie(fleet: FakeFleet) -> None:
    """The address loses the token; the cookie is HttpOnly, SameSite=Strict, and not the token."""
    answer = browser(fleet).get("/", params={"token": fleet.token}, follow_redirects=False)
    cookie = answer.headers["set-cookie"]

    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert fleet.token not in cookie
    assert cookie.startswith("regatta-page-8090=")


def test_the_cookie_is_no_key_to_the_api(fleet: FakeFleet) -> None:
    """A page that leaks its cookie to another port of this host gives no power over the fleet."""
    client = unlocked(fleet)
    cookie = client.cookies[page.cookie_name(8090)]

    assert client.get("/api/v1/status").status_code == 401
    assert client.get("/api/v1/status", headers={"Authorization": f"Bearer {cookie}"}).status_code == 401


def test_the_fleet_is_on_one_page(fleet: FakeFleet) -> None:
    """Devices, rollouts with the gate's words, races with the losers' reasons, unknown power with its reason."""
    text = unlocked(fleet).get("/").text

    for name in fleet.devices:
        assert f'href="/device/{name}"' in text
    assert "accuracy fell by 35.3 points on crane-1" in text
    assert "signal 11 in libedgetpu.so.1" in text
    assert "no power sensor" in text
    assert "93.9–97.9" in text
    assert "12,480" in text


def test_an_empty_fleet_says_what_to_do() -> None:
    """Each empty section names the next command."""
    text = unlocked(FakeFleet()).get("/").text

    assert "regatta device token" in text
    assert "regatta rollout start" in text


def test_a_device_has_its_own_page(fleet: FakeFleet) -> None:
    """Board facts, models and races; a device that is not there is a clear 404."""
    client = unlocked(fleet)

    assert "Cortex-A76" in client.get("/device/quay-1").text
    assert client.get("/device/nobody").status_code == 404
    assert client.get("/device/Not%20Valid").status_code == 404
    assert client.get("/page/../routes.py").status_code == 404


def test_a_device_shows_where_the_time_of_its_requests_goes(fleet: FakeFleet) -> None:
    """A bar of the stages' medians from end to end, and the figures; before any is told, when to expect them."""
    told = unlocked(fleet).get("/device/quay-1").text
    served = fleet.devices["quay-1"].models[0]
    assert served.served is not None
    silent = served.model_copy(update={"served": served.served.model_copy(update={"stages": {}})})
    fleet.add_device(fleet.devices["quay-1"].model_copy(update={"models": (silent,)}))

    bars = re.findall(r'class="(queue|compute_\w+)" x="([\d.]+)%" y="3" width="([\d.]+)%"', told)
    assert [name for name, _, _ in bars] == ["queue", "compute_input", "compute_infer", "compute_output"]
    assert sum(float(width) for _, _, width in bars) == pytest.approx(100, abs=0.1)
    assert figures.latency(20.0) in told
    assert "one window in five minutes" in unlocked(fleet).get("/device/quay-1").text


def test_what_waits_for_a_window_is_told_on_both_pages(fleet: FakeFleet) -> None:
    """Until when, with the time zone, at the rollout and at the device."""
    words = "waits: window opens 02:00 CET"
    old = fleet.rollouts["r-3"]
    wave = old.waves[0].model_copy(update={"state": WaveState.OBSERVING, "reason": f"quay-1 ({words})"})
    fleet.rollouts["r-3"] = old.model_copy(update={"waves": (wave, *old.waves[1:])})
    fleet.add_device(device("quay-1", version=2, state="verified", serving=False, reason=words))
    client = unlocked(fleet)

    assert f"quay-1 ({words})" in client.get("/").text
    assert words in client.get("/device/quay-1").text


def test_a_status_that_raises_for_missing_devices_is_served_too(fleet: FakeFleet) -> None:
    """The server's view raises NotFound where the fake answers None."""

    def raising(name: DeviceId) -> DeviceDetail:
        raise Rejected(f"there is no device {name}")

    app = FastAPI()
    app.include_router(page.router(fleet.status, raising, lambda count: (), "token"))
    client = TestClient(app)

    assert client.get("/", params={"token": "token"}).status_code == 200
    assert client.get("/device/quay-1").status_code == 404


@pytest.mark.parametrize("path", ["/", "/device/quay-1", "/page/page.css", "/page/page.js", "/page/icon.svg"])
def test_nothing_comes_from_elsewhere(fleet: FakeFleet, path: str) -> None:
    """The policy forbids it, and no address of another host is in what is sent. No inline script or style is needed."""
    answer = unlocked(fleet).get(path)

    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)
    for tag, attributes in Markup(answer.text).tags if path.count("/") < 3 and "page" not in path else []:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "style"
        assert tag != "script" or attributes.get("src") == "/page/page.js"


def hostile_fleet() -> FakeFleet:
    """A fleet in which every text that a device or a model gives is hostile."""
    fleet = FakeFleet(token="test-token")
    good = device("quay-1")
    race = good.races[0].model_copy(
        update={
            "model": HOSTILE,
            "reason": HOSTILE,
            "objective": HOSTILE,
            "placement": HOSTILE,
            "candidates": tuple(
                one.model_copy(update={"id": f"{HOSTILE}{i}", "reason": HOSTILE})
                for i, one in enumerate(good.races[0].candidates)
            ),
        }
    )
    power = good.models[0].power
    model = good.models[0].model_copy(
        update={
            "reason": HOSTILE,
            "degraded": HOSTILE,
            "placement": HOSTILE,
            "power": power and replace(power, reason=HOSTILE),
            "serving": False,
        }
    )
    board = good.board.model_copy(
        update=dict.fromkeys(("model", "machine", "cpu", "kernel", "power_sensor"), HOSTILE)
        | {"accelerators": (HOSTILE,)}
    )
    update = {"models": (model,), "races": (race,), "board": board, "group": HOSTILE, "agent_version": HOSTILE}
    fleet.add_device(good.model_copy(update=update))
    fleet.events.append(FleetEvent(at=1.0, kind=HOSTILE, text=HOSTILE, device=HOSTILE))
    wave = WaveDetail(number=1, state=WaveState.FAILED, devices=(DeviceId("quay-1"),), reason=HOSTILE)
    rollout = RolloutDetail.model_validate(
        {"id": HOSTILE, "model": "digits", "version": 1, "state": RolloutState.HELD, "reason": HOSTILE}
        | {"waves": (wave,), "gate": {}, "created_at": 1.0}
    )
    fleet.rollouts["r-1"] = rollout
    return fleet


@pytest.mark.parametrize("path", ["/", "/device/quay-1"])
def test_hostile_text_stays_text(path: str) -> None:
    """No element, attribute or control character of a device's text gets into the page."""
    text = unlocked(hostile_fleet()).get(path).text
    tags = Markup(text).tags

    assert "&lt;script&gt;" in text
    assert [attributes for tag, attributes in tags if tag == "script"] == [{"src": "/page/page.js", "defer": None}]
    assert all(attributes.get("src") == "/page/icon.svg" for tag, attributes in tags if tag == "img")
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "{{7*7}}" in text


def test_tables_are_accessible(fleet: FakeFleet) -> None:
    """Every table has headings with a scope, every scrolling region a name, the document a language."""
    text = unlocked(fleet).get("/").text
    tags = Markup(text).tags

    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert all(
        "aria-label" in attributes or "aria-labelledby" in attributes
        for tag, attributes in tags
        if attributes.get("role") == "region"
    )
    assert ("html", {"lang": "en"}) in tags
    assert len([tag for tag, _ in tags if tag == "h1"]) == 1
    identifiers = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
