"""The key of a race: equal where figures may stand for each other, different where they may not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.ids import Digest, digest_of_bytes
from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.race.key import KeyedVariant, race_key

GOLDEN = digest_of_bytes(b"g")
BOARD = BoardFacts(
    model="Raspberry Pi 5",
    machine="aarch64",
    cpu="Cortex-A76",
    cores=4,
    memory_bytes=8 * 2**30,
    drivers={"apex": "1.2"},
)


@dataclass(frozen=True)
class Facts:
    """The arguments of a key."""

    variants: tuple[KeyedVariant, ...] = (
        KeyedVariant("float32", digest_of_bytes(b"f")),
        KeyedVariant("tpu", digest_of_bytes(b"t"), ("edgetpu",)),
    )
    golden: Digest | None = GOLDEN
    evaluation: Digest | None = None
    board: BoardFacts = BOARD
    libraries: dict[str, str] = field(default_factory=lambda: {"edgetpu": "ab"})
    runtimes: dict[str, str] = field(default_factory=lambda: {"litert": "2.3", "tflite": "2.14"})
    threads: tuple[int, ...] = (1, 2, 4)

    def key(self) -> Digest:
        return race_key(
            self.variants,
            self.golden,
            self.evaluation,
            board=self.board,
            libraries=self.libraries,
            runtimes=self.runtimes,
            threads=self.threads,
        )


@given(
    temperature=st.none() | st.floats(-20, 110),
    throttled=st.none() | st.booleans(),
    memory=st.integers(7 * 2**30, 8 * 2**30),
    kernel=st.none() | st.text(max_size=10),
)
def test_what_changes_from_minute_to_minute_keeps_the_key(
    temperature: float | None, throttled: bool | None, memory: int, kernel: str | None
) -> None:
    """Heat, throttling, what the firmware takes off the memory, and a kernel with the same drivers."""
    now = {"temperature_c": temperature, "throttled": throttled, "memory_bytes": memory, "kernel": kernel}

    assert Facts(board=BOARD.model_copy(update=now)).key() == Facts().key()


@given(st.permutations(Facts().variants), st.permutations(["litert", "tflite"]), st.permutations([1, 2, 4]))
def test_order_does_not_count(variants: list[KeyedVariant], runtimes: list[str], threads: list[int]) -> None:
    """Neither of variants nor of runtimes nor of thread counts."""
    versions = Facts().runtimes
    shuffled = Facts(
        variants=tuple(variants), runtimes={name: versions[name] for name in runtimes}, threads=tuple(threads)
    )

    assert shuffled.key() == Facts().key()


@pytest.mark.parametrize(
    "other",
    [
        Facts(variants=Facts().variants[:1]),
        Facts(variants=(KeyedVariant("float32", digest_of_bytes(b"F")), Facts().variants[1])),
        Facts(variants=(replace(Facts().variants[0], name="f"), Facts().variants[1])),
        Facts(variants=(replace(Facts().variants[0], requires=("vx",)), Facts().variants[1])),
        Facts(variants=(replace(Facts().variants[0], overlay=("b" * 64, "0")), Facts().variants[1])),
        Facts(golden=digest_of_bytes(b"G")),
        Facts(golden=None),
        Facts(evaluation=GOLDEN),
        Facts(board=BOARD.model_copy(update={"cpu": "Cortex-A72"})),
        Facts(board=BOARD.model_copy(update={"memory_bytes": 2**32})),
        Facts(board=BOARD.model_copy(update={"accelerators": ("coral-usb",)})),
        Facts(board=BOARD.model_copy(update={"drivers": {"apex": "1.3"}})),
        Facts(libraries={"edgetpu": "ac"}),
        Facts(runtimes={"litert": "2.4", "tflite": "2.14"}),
        Facts(runtimes={"litert": "2.3"}),
        Facts(threads=(1, 2)),
    ],
)
def test_whatever_figures_depend_on_changes_the_key(other: Facts) -> None:
    """A file, the board, a driver, a library, a runtime, what is tried."""
    assert other.key() != Facts().key()


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_versions_cannot_be_written_to_look_alike(a: str, b: str, c: str, d: str) -> None:
    """Two boards have one key only when each runtime has one version on both, whatever the versions are."""
    same = (a, b) == (c, d)

    assert (Facts(runtimes={"x": a, "y": b}).key() == Facts(runtimes={"x": c, "y": d}).key()) is same
