"""Which candidates a bundle has: runtimes × variants × delegates × threads × options, and what is absent, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from regatta_protocol.measurement import BoardFacts, Outcome
from regatta_protocol.values import Plugin
from regatta_runtimes.board.delegates import DELEGATES, DelegateFacts
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.race.enumerate import Entrant, enumerate_candidates
from regatta_runtimes.runtime import RUNTIMES, format_of, runtime_facts
from tiny_models import unary_model

ALL = dict.fromkeys(("litert", "tflite", "compiled"))


def _ids(board: BoardFacts, **options: object) -> list[str]:
    candidates, _ = enumerate_candidates([Entrant("v")], ALL, board, (1, 2), **options)  # type: ignore[arg-type]
    return [candidate.id for candidate in candidates]


def test_each_runtime_has_its_own_ways_on_the_processor() -> None:
    """The interpreters with and without XNNPACK, the compiled model in one way; one thread first."""
    assert _ids(BoardFacts()) == [
        "litert/v/xnnpack/t1",
        "litert/v/none/t1",
        "tflite/v/xnnpack/t1",
        "tflite/v/none/t1",
        "compiled/v/cpu/t1",
        "litert/v/xnnpack/t2",
        "litert/v/none/t2",
        "tflite/v/xnnpack/t2",
        "tflite/v/none/t2",
        "compiled/v/cpu/t2",
    ]


@pytest.mark.parametrize("accelerators", [("gpu",), ("jetson",), ("fpga", "gpu")])
def test_a_gpu_races_where_the_board_shows_one(accelerators: tuple[str, ...]) -> None:
    """In half and in single precision, by compiled models alone; without a GPU there is no such candidate."""
    ids = _ids(BoardFacts(accelerators=accelerators))

    assert [one for one in ids if "/gpu" in one] == ["compiled/v/gpu/t1", "compiled/v/gpu+f32/t1"]
    assert not any("/gpu" in one for one in _ids(BoardFacts()))


def test_each_set_of_options_is_a_candidate(tmp_path: Path) -> None:
    """It has the row's own options too, and may replace one."""
    (tmp_path / "mine.so").touch()
    row = DelegateFacts(
        what="mine",
        libraries=("/mine.so",),
        options={"cache": "1", "clock": "std"},
        option_sets={"max": {"clock": "max"}, "fp16": {"half": "1"}},
        runtimes=("litert",),
    )

    candidates, _ = enumerate_candidates([Entrant("v")], ALL, BoardFacts(), (1,), {"mine": row}, tmp_path)

    mine = [candidate for candidate in candidates if candidate.delegate == "mine"]
    assert [candidate.id for candidate in mine] == [
        "litert/v/mine/t1",
        "litert/v/mine+max/t1",
        "litert/v/mine+fp16/t1",
    ]
    assert [candidate.plugin.options if candidate.plugin else None for candidate in mine] == [
        {"cache": "1", "clock": "std"},
        {"cache": "1", "clock": "max"},
        {"cache": "1", "clock": "std", "half": "1"},
    ]
    assert [parse_candidate_id(candidate.id) for candidate in mine] == mine


def test_a_runtime_that_cannot_be_used_is_told_once() -> None:
    """And not for every variant that it would have run."""
    candidates, absent = enumerate_candidates(
        [Entrant("a"), Entrant("b")], {"litert": None, "tflite": "needs numpy < 2"}, BoardFacts(), (1, 2)
    )

    assert {candidate.runtime for candidate in candidates} == {"litert"}
    assert [(result.id, result.outcome, result.reason) for result in absent] == [
        ("tflite/a/none/t1", Outcome.UNAVAILABLE, "needs numpy < 2")
    ]


def test_a_variant_for_an_npu_of_compiled_models_goes_to_that_runtime_alone() -> None:
    """Whatever else the board has."""
    candidates, absent = enumerate_candidates([Entrant("v", ("npu",))], ALL, BoardFacts(), (1, 2))

    assert [candidate.id for candidate in candidates] == ["compiled/v/npu/t1"]
    assert candidates[0].plugin == Plugin()
    assert absent == []


def test_a_delegate_is_tried_on_the_precisions_that_it_takes(tmp_path: Path) -> None:
    """A variant that requires it by name goes to it whatever its precision, and one of unknown precision is tried."""
    (tmp_path / "npu.so").touch()
    rows = {"mine": DelegateFacts(what="mine", libraries=("/npu.so",), precisions=("int8",), runtimes=("litert",))}
    entrants = [
        Entrant("float32", precision="float32"),
        Entrant("int8", precision="int8"),
        Entrant("unknown"),
        Entrant("forced", ("mine",), precision="float32"),
    ]

    candidates, _ = enumerate_candidates(entrants, ALL, BoardFacts(), (1,), rows, tmp_path)

    assert [one.variant for one in candidates if one.delegate == "mine"] == ["int8", "unknown", "forced"]


def test_a_row_that_nothing_can_drive_is_no_candidate() -> None:
    """It names no library, and its runtimes bring none."""
    rows = {"odd": DelegateFacts(what="odd")}

    candidates, absent = enumerate_candidates([Entrant("v", ("odd",))], ALL, BoardFacts(), (1,), rows)

    assert candidates == []
    assert "no backend for odd" in (absent[0].reason or "")


def test_every_row_names_runtimes_that_there_are() -> None:
    """Of the table that ships."""
    assert {runtime for facts in DELEGATES.values() for runtime in facts.runtimes} <= set(RUNTIMES)


@pytest.mark.parametrize(
    ("data", "expected"),
    [(unary_model(), "tflite"), (b"\x08\x09\x12\x07regatta", "onnx"), (b"", "tflite"), (b"hello, a text", "tflite")],
)
def test_a_format_is_known_by_the_first_bytes(tmp_path: Path, data: bytes, expected: str) -> None:
    """On a board files are named by their digests, so a suffix tells nothing."""
    (tmp_path / "model").write_bytes(data)

    assert format_of(tmp_path / "model") == expected


def test_a_runtime_that_a_caller_adds_is_taken_for_an_interpreter() -> None:
    """With and without its default delegate."""
    assert runtime_facts("abacus").cpu_delegates == ("xnnpack", "none")
