"""What the command line relies on, held to the fake fleet and to the real server alike.

Devices do not take part: what needs them is in the system tests.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from regatta_fleet.bootstrap import running
from regatta_fleet.calling import Refused
from regatta_fleet.client import FleetClient
from regatta_fleet.schemas import BatchRequest, BundleDraft, ResultsRequest, RolloutRequest, TokenRequest
from regatta_fleet.settings import Settings
from regatta_fleet.testing import FakeFleet
from regatta_fleet.testing_app import fake_app, serve
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, ModelName, ModelRef, digest_of_bytes
from regatta_protocol.manifest import FileRef
from regatta_protocol.policy import Policy

ASKED = ResultsRequest()
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")


@dataclass(frozen=True)
class Server:
    url: str
    token: str


@pytest.fixture(scope="module", params=["fake", "real"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if request.param == "fake":
        fleet = FakeFleet()
        with serve(fake_app(fleet)) as url:
            yield Server(url, fleet.token)
        return
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto runs this against the real server")
    with (
        running(Settings(home=tmp_path_factory.mktemp("home"))) as parts,
        serve(parts.operator.app) as url,
    ):
        yield Server(url, parts.info.token)


@pytest.fixture
def client(server: Server) -> Iterator[FleetClient]:
    with FleetClient(server.url, server.token) as found:
        yield found


def _upload(client: FleetClient, folder: Path, data: bytes) -> FileRef:
    path = folder / digest_of_bytes(data)
    path.write_bytes(data)
    ref = FileRef(digest=digest_of_bytes(data), size_bytes=len(data))
    client.upload_blob(ref, path)
    return ref


def _draft(model: FileRef, golden: FileRef) -> BundleDraft:
    variant = {"name": "int8", "file": model, "precision": "int8", "inputs": [], "outputs": []}
    return BundleDraft.model_validate({"variants": [variant], "golden": golden})


def test_an_uploaded_file_is_known(client: FleetClient, tmp_path: Path) -> None:
    """HEAD tells what is there; a second upload of the same is no error."""
    data = b"a blob " * 50_000
    assert not client.has_blob(digest_of_bytes(data))

    for _ in range(2):
        ref = _upload(client, tmp_path, data)

    assert client.has_blob(ref.digest)


def test_a_file_with_another_digest_is_refused(client: FleetClient, tmp_path: Path) -> None:
    """Nothing is stored of it."""
    path = tmp_path / "blob"
    path.write_bytes(b"wrong")
    ref = FileRef(digest=digest_of_bytes(b"right"), size_bytes=5)

    with pytest.raises(Rejected):
        client.upload_blob(ref, path)

    assert not client.has_blob(ref.digest)


def test_versions_count_up(client: FleetClient, tmp_path: Path) -> None:
    """The server numbers versions from 1 and answers with the manifest; lists and details know them."""
    draft = _draft(_upload(client, tmp_path, b"model"), _upload(client, tmp_path, b"golden"))

    made = [client.create_version(ModelName("counted"), draft).version for _ in range(2)]

    assert made == [1, 2]
    assert client.model(ModelName("counted")).versions == (1, 2)
    assert "counted" in {model.name for model in client.models()}
    detail = client.version(ModelRef(ModelName("counted"), 2))
    assert detail.manifest.variants[0].file == draft.variants[0].file
    assert detail.devices == ()


def test_a_version_needs_its_files(client: FleetClient, tmp_path: Path) -> None:
    """A draft whose files are not uploaded makes no version."""
    absent = FileRef(digest=digest_of_bytes(b"never sent"), size_bytes=10)

    with pytest.raises(Rejected):
        client.create_version(ModelName("absent"), _draft(absent, _upload(client, tmp_path, b"golden")))
    with pytest.raises(Rejected):
        client.model(ModelName("absent"))


def test_tokens_differ(client: FleetClient) -> None:
    """Each is new and says when it ends."""
    first, second = (client.create_token(TokenRequest(valid_s=60)) for _ in range(2))

    assert first.token != second.token
    assert len(first.token.split()) == 1
    assert first.expires_at <= second.expires_at


def test_unknown_things_are_rejected(client: FleetClient) -> None:
    """Every lookup of nothing is a refusal with words, not an empty answer."""
    for lookup in (
        lambda: client.device(DeviceId("nobody")),
        lambda: client.revoke(DeviceId("nobody")),
        lambda: client.model(ModelName("nothing")),
        lambda: client.version(ModelRef(ModelName("nothing"), 1)),
        lambda: client.rollout("nothing"),
        lambda: client.abort_rollout("nothing"),
        lambda: client.promote_rollout("nothing"),
    ):
        with pytest.raises(Rejected, match="there is no "):
            lookup()


def test_a_rollout_needs_a_version_and_devices(client: FleetClient, tmp_path: Path) -> None:
    """Nothing begins without them."""
    draft = _draft(_upload(client, tmp_path, b"model"), _upload(client, tmp_path, b"golden"))
    ref = client.create_version(ModelName("lonely"), draft).ref

    for version in (ref.version, ref.version + 1):
        with pytest.raises(Rejected):
            client.start_rollout(RolloutRequest(model=ref.name, version=version))

    assert client.rollouts() == ()


def test_policies_are_set_replaced_and_cleared(client: FleetClient, tmp_path: Path) -> None:
    """A rule keeps just what it sets, a lifted limit included; setting again replaces it; each is cleared once."""
    draft = _draft(_upload(client, tmp_path, b"model"), _upload(client, tmp_path, b"golden"))
    name = client.create_version(ModelName("governed"), draft).name
    client.set_policy("battery", None, Policy(objective="latency_p99", max_p99_us=10))
    found = client.set_policy("battery", None, Policy(objective="energy", max_memory_bytes=None))
    client.set_policy("all", name, Policy(max_p99_us=5))

    rules = client.policies()
    client.clear_policy("battery", None)

    assert (found.group, found.model, found.devices) == ("battery", None, 0)
    assert [(rule.group, rule.model) for rule in rules] == [("all", name), ("battery", None)]
    assert rules[1].policy.model_dump(exclude_unset=True) == {"objective": "energy", "max_memory_bytes": None}
    assert [rule.group for rule in client.policies()] == ["all"]
    for refused in (
        lambda: client.clear_policy("battery", None),
        lambda: client.set_policy("all", ModelName("nothing"), Policy(objective="energy")),
        lambda: client.set_policy("all", None, Policy()),
        lambda: client.set_policy("all", None, Policy.model_validate({"objectiv": "energy"})),
    ):
        with pytest.raises(Rejected):
            refused()


def test_update_windows_are_set_replaced_and_cleared(client: FleetClient) -> None:
    """Setting again replaces; each is cleared once; what is no window is refused with how to write one."""
    client.set_windows("shops", ("02:00-05:00",))
    found = client.set_windows("shops", ("mon-sat 22:00-05:00 Europe/Berlin", "sun 00:00-24:00 UTC"))
    client.set_windows("all", ("02:00-05:00",))

    assert found.windows == ("mon-sat 22:00-05:00 Europe/Berlin", "sun 00:00-24:00 UTC")
    assert [one.group for one in client.windows()] == ["all", "shops"]
    client.clear_windows("shops")
    assert [one.group for one in client.windows()] == ["all"]
    client.clear_windows("all")
    with pytest.raises(Rejected, match="no update window is set"):
        client.clear_windows("shops")


def test_a_batch_needs_a_known_model_and_a_device(client: FleetClient, tmp_path: Path) -> None:
    """Each is refused with what is missing; nothing is listed of it."""
    client.create_version(
        ModelName("batched"), _draft(_upload(client, tmp_path, b"model"), _upload(client, tmp_path, b"golden"))
    )
    for name, words in (("unknown", "no model"), ("batched", "device")):
        with pytest.raises(Rejected, match=words):
            client.start_batch(BatchRequest(model=ModelName(name), on=("all",), input="/data"))
    for call in (client.batch, client.cancel_batch, client.forget_results, lambda one: client.ask_results(one, ASKED)):
        with pytest.raises(Rejected, match=r"no batch .*b-none.*batch list"):
            call("b-none")
    assert client.batches() == ()
    file = FileRef(digest=digest_of_bytes(b""), size_bytes=0)
    with pytest.raises(Rejected, match="b-none"):
        client.fetch_output("b-none", DeviceId("pi-1"), file, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists() and not (tmp_path / ".out.jsonl.part").exists()


def test_history_can_be_continued(client: FleetClient, tmp_path: Path) -> None:
    """Asking from the newest line on brings what came later, and nothing older."""
    draft = _draft(_upload(client, tmp_path, b"model"), _upload(client, tmp_path, b"golden"))
    client.create_version(ModelName("history"), draft)
    before = client.events()
    client.create_version(ModelName("history"), draft)

    later = client.events(since=before[-1].at)

    assert [event.at for event in before] == sorted(event.at for event in before)
    assert [event for event in later if event not in before]
    assert all(event.at >= before[-1].at for event in later)


def test_the_status_has_it_all(client: FleetClient) -> None:
    """One answer for the whole page."""
    status = client.status()

    assert status.fleet
    assert status.devices == client.devices() == ()


def test_only_the_token_opens_it(server: Server) -> None:
    """API and page alike; the page's cookie opens the page alone."""
    with FleetClient(server.url, "wrong") as stranger, pytest.raises(Refused):
        stranger.status()
    assert requests.get(f"{server.url}/", timeout=10).status_code == 401

    with requests.Session() as browser:
        page = browser.get(f"{server.url}/?token={server.token}", timeout=10)
        api = browser.get(f"{server.url}/api/v1/status", timeout=10)

    assert page.status_code == 200
    assert server.token not in page.url
    assert "<h1>" in page.text
    assert api.status_code == 401
