"""The client for threads and the one for asyncio keep the same promises, on a real worker with a real model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polling import wait_until
from regatta_agent.client import AsyncClient, Client, Processed, Score
from regatta_agent.serving.spec import ServeSpec
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse, Rejected, Retryable
from regatta_protocol.ids import ModelName
from serving_process import ServingProcess, serving, tiny_spec
from shared_data import shared_file

pytestmark = pytest.mark.system

_DIGIT = np.random.default_rng(5).random((1, 8, 8, 1), dtype=np.float32)


class _Awaited:
    """The asynchronous client behind the synchronous one's methods: one loop, run for each call."""

    def __init__(self, target: Path, **more: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(target, connections=2, **more)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Coroutine[Any, Any, Any]] = getattr(self._client, name)
        return lambda *args, **more: self._loop.run_until_complete(method(*args, **more))

    def end(self) -> None:
        self.close()
        self._loop.close()


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """MobileNetV2 with its labels, without a manifest."""
    folder = tmp_path_factory.mktemp("cats")
    spec = ServeSpec(
        model=ModelName("cats"),
        version=1,
        candidate_id="litert/uint8/xnnpack/t1",
        variant_path=shared_file("coral/mobilenet_v2_1.0_224_quant.tflite"),
        labels_path=shared_file("coral/imagenet_labels.txt"),
        socket_path=folder / "cats.sock",
    )
    with serving(spec, folder) as process:
        yield process


@pytest.fixture(params=["threads", "asyncio"])
def client(request: pytest.FixtureRequest, cats: ServingProcess) -> Iterator[Any]:
    if request.param == "threads":
        with Client(cats.spec.socket_path) as one:
            yield one
    else:
        awaited = _Awaited(cats.spec.socket_path)
        yield awaited
        awaited.end()


def _pixels() -> Array:
    with Image.open(shared_file("coral/cat.bmp")) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_picture_gives_labels(client: Any) -> None:
    """As a file, as pixels of any size, and as the model's own input: a cat each time, with feedback by its id."""
    file, pixels = shared_file("coral/cat.bmp").read_bytes(), _pixels()

    by_file: list[Score] = client.classify("cats", file, top=2, request_id="cat")
    by_pixels: list[Score] = client.classify("cats", pixels)
    own = client.classify("cats", np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)))
    done: Processed = client.process("cats", file)

    assert [len(by_file), by_file[0].label] == [2, "Egyptian cat"]
    assert by_pixels[:2] == by_file
    assert own[0].label == "Egyptian cat"
    assert done.document["kind"] == "classification" and len(done.document["classes"]) == 5
    assert client.feedback("cats", "cat", label="Egyptian cat")


def test_tensors_and_metadata(client: Any) -> None:
    outputs = client.infer("cats", np.zeros((1, 224, 224, 3), dtype=np.uint8))

    assert [array.shape for array in outputs.values()] == [(1, 1001)]
    assert client.metadata("cats")["parameters"]["processing"] == {"input": "image", "result": "classification"}
    assert client.is_ready("cats")


def test_refusals_have_the_workers_words(client: Any) -> None:
    """A damaged picture, another model's name, and a large wrong array leave the client usable."""
    with pytest.raises(Rejected, match="no picture"):
        client.classify("cats", b"no picture")
    with pytest.raises(Rejected, match="not served here"):
        client.metadata("dogs")
    with pytest.raises(Rejected, match="shape"):
        client.infer("cats", np.zeros((1, 300, 300, 3), dtype=np.uint8))

    assert client.classify("cats", _pixels())[0].label == "Egyptian cat"


def test_targets_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no target"):
        AsyncClient("ftp://x")
    with pytest.raises(Misuse, match="connections"):
        AsyncClient(tmp_path / "x.sock", connections=0)
    with pytest.raises(Retryable, match="is not there"):
        asyncio.run(AsyncClient(tmp_path / "x.sock").is_ready("m"))


def test_many_tasks_share_few_connections_and_survive_a_swap(tmp_path: Path) -> None:
    """Eight tasks over two connections ask on while the link is pointed to another worker and the first one leaves."""
    link = tmp_path / "tiny.sock"

    answers: list[Array] = []
    swapped = threading.Event()

    async def ask(client: AsyncClient) -> None:
        while not swapped.is_set():
            answers.append((await client.infer("tiny", _DIGIT))["scores"])
        for _ in range(20):
            answers.append((await client.infer("tiny", _DIGIT))["scores"])

    async def load() -> None:
        async with AsyncClient(link, connections=2) as client:
            await asyncio.gather(*(ask(client) for _ in range(8)))

    with serving(tiny_spec(tmp_path, 1), tmp_path) as first, serving(tiny_spec(tmp_path, 2), tmp_path):
        link.symlink_to("1.sock")
        thread = threading.Thread(target=lambda: asyncio.run(load()))
        thread.start()
        wait_until(lambda: len(answers) > 50, 30.0, "the tasks ask")
        (tmp_path / "new").symlink_to("2.sock")
        (tmp_path / "new").replace(link)
        first.drain()
        swapped.set()
        thread.join(30.0)

        assert not thread.is_alive()
        assert len(answers) > 50 + 8 * 20 - 1
        assert all(np.array_equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_shared_memory_survives_a_swap_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    """The same answers as without, also by the next worker, which is told of the region; then the object is gone."""
    link = tmp_path / "tiny.sock"
    before = set(Path("/dev/shm").iterdir())

    shared: Any = Client(link, shared_memory=True) if kind == "threads" else _Awaited(link, shared_memory=True)
    with (
        serving(tiny_spec(tmp_path, 1, shared_memory=True), tmp_path) as first,
        serving(tiny_spec(tmp_path, 2, shared_memory=True), tmp_path),
        serving(tiny_spec(tmp_path, 3), tmp_path),
    ):
        link.symlink_to("1.sock")
        with Client(link) as plain:
            expected = plain.infer("tiny", _DIGIT)["scores"]
        answers = [shared.infer("tiny", _DIGIT)["scores"] for _ in range(3)]
        (tmp_path / "new").symlink_to("2.sock")
        (tmp_path / "new").replace(link)
        first.drain()
        answers += [shared.infer("tiny", _DIGIT)["scores"] for _ in range(3)]
        made = set(Path("/dev/shm").iterdir()) - before
        shared.close()
        link.unlink()
        link.symlink_to("3.sock")
        with pytest.raises(Rejected, match="not offered"):
            shared.infer("tiny", _DIGIT)
        shared.close()

    assert all(np.array_equal(answer, expected) for answer in answers)
    assert any(path.name.startswith("regatta-") for path in made)
    assert not {path for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith("regatta-")}


def test_the_client_needs_numpy_and_the_standard_library_only() -> None:
    """An application that imports it gets no pydantic, paho or click."""
    program = (
        "import sys; before = set(sys.modules); import regatta_agent.client;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(name for name in new - sys.stdlib_module_names if 'cython' not in name))"  # numpy's own
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout.strip() == "['numpy', 'regatta_agent', 'regatta_protocol']"
