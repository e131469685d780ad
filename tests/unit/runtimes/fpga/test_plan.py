"""The plan of a change, as tables: what is settled, which steps from which facts, and what each state means."""

from __future__ import annotations

import pytest

from regatta_protocol.errors import Misuse, RegattaError, Rejected, Retryable
from regatta_protocol.ids import Digest
from regatta_runtimes.fpga.plan import (
    ApplyTree,
    Await,
    FpgaFacts,
    Loaded,
    OverlayRecord,
    Program,
    RemoveTree,
    Step,
    WriteFlags,
    busy_with,
    is_settled,
    previous_of,
    steps_to,
    trouble_of,
)

BIN, TREE = Digest("a" * 64), Digest("b" * 64)
ALONE = Loaded(name="a", bitstream=BIN, user="m:1")
FOLLOWS = Loaded(name="a", bitstream=BIN, device_tree=TREE)
PROGRAMS = Loaded(name="a", bitstream=BIN, device_tree=TREE, tree_programs=True)
FACTS = FpgaFacts("fpga0", "operating", offers_firmware=True, offers_flags=True, offers_trees=True, boot="1")
WITH_TREE = FpgaFacts(
    "fpga0", "operating", offers_firmware=True, offers_flags=True, offers_trees=True, tree="applied", boot="1"
)
LOAD, APPLY = Program(f"regatta/{BIN}.bin"), ApplyTree(f"regatta/{TREE}.dtbo")


@pytest.mark.parametrize(
    ("wanted", "facts", "steps"),
    [
        (ALONE, FACTS, [WriteFlags(0), LOAD, Await(tree=False)]),
        (FOLLOWS, FACTS, [WriteFlags(0), LOAD, Await(tree=False), APPLY, Await(tree=True)]),
        (PROGRAMS, FACTS, [WriteFlags(0), APPLY, Await(tree=True)]),
        (PROGRAMS, WITH_TREE, [RemoveTree(), WriteFlags(0), APPLY, Await(tree=True)]),
        (PROGRAMS, FpgaFacts("fpga0", "unknown", offers_trees=True), [APPLY, Await(tree=True)]),
        (ALONE, FpgaFacts("fpga0", "unknown", offers_firmware=True), [LOAD, Await(tree=False)]),
        (None, FACTS, []),
        (None, WITH_TREE, [RemoveTree()]),
        (None, FpgaFacts(None, None), []),
    ],
)
def test_steps_follow_from_the_facts(wanted: Loaded | None, facts: FpgaFacts, steps: list[Step]) -> None:
    """Ours is taken out first; a tree that names its bitstream loads both; flags where the kernel has them."""
    assert list(steps_to(wanted, facts)) == steps


@pytest.mark.parametrize(
    ("wanted", "facts", "words"),
    [
        (ALONE, FpgaFacts(None, None), "FPGA manager driver"),
        (ALONE, FpgaFacts("fpga0", "operating"), "no `firmware` attribute"),
        (PROGRAMS, FpgaFacts("fpga0", "operating", offers_firmware=True), "CONFIG_OF_CONFIGFS"),
        (
            ALONE.model_copy(update={"flags": 1}),
            FpgaFacts("fpga0", "operating", offers_firmware=True),
            "no `flags` attribute",
        ),
        (
            ALONE,
            FpgaFacts("fpga0", "operating", offers_firmware=True, foreign=("k26",)),
            "k26 of another program",
        ),
    ],
)
def test_what_a_kernel_cannot_do_is_told_with_what_to_do(wanted: Loaded, facts: FpgaFacts, words: str) -> None:
    """Before any step."""
    with pytest.raises(Misuse, match=words):
        steps_to(wanted, facts)


@pytest.mark.parametrize(
    ("record", "wanted", "facts", "settled"),
    [
        (OverlayRecord(boot="1", loaded=ALONE), ALONE, FACTS, True),
        (OverlayRecord(boot="1", loaded=ALONE), ALONE.model_copy(update={"user": "n:2", "name": "b"}), FACTS, True),
        (OverlayRecord(boot="1", loaded=PROGRAMS), PROGRAMS, WITH_TREE, True),
        (OverlayRecord(boot="1", loaded=PROGRAMS), PROGRAMS, FACTS, False),  # somebody took the tree away
        (OverlayRecord(boot="1", loaded=ALONE), ALONE.model_copy(update={"flags": 1}), FACTS, False),
        (OverlayRecord(boot="1", loaded=ALONE, changing=True, wanted=FOLLOWS), ALONE, FACTS, False),
        (OverlayRecord(boot="0", loaded=ALONE), ALONE, FACTS, False),
        (OverlayRecord(boot="1"), ALONE, FACTS, False),
        (OverlayRecord(boot="1", loaded=ALONE), ALONE, FpgaFacts("fpga0", "write error", boot="1"), False),
        (OverlayRecord(boot="1", loaded=ALONE), ALONE, FpgaFacts(None, None, boot="1"), False),
    ],
)
def test_only_what_is_known_to_operate_is_settled(
    record: OverlayRecord, wanted: Loaded, facts: FpgaFacts, settled: bool
) -> None:
    """By content, in this boot, with no change cut off; whom it was loaded for does not matter."""
    assert is_settled(record, wanted, facts) is settled


def test_after_a_boot_there_is_nothing_to_go_back_to() -> None:
    """The FPGA lost it."""
    assert previous_of(OverlayRecord(boot="1", loaded=ALONE), FACTS) == ALONE
    assert previous_of(OverlayRecord(boot="0", loaded=ALONE), FACTS) is None


# every state of Documentation/ABI/testing/sysfs-class-fpga-manager, one of none, and no state at all
STATES: dict[str | None, tuple[type[RegattaError] | None, type[RegattaError] | None]] = {
    "operating": (None, None),
    "unknown": (None, Retryable),
    "power off": (None, Retryable),
    "power up": (None, Retryable),
    "reset": (None, Retryable),
    "firmware request": (None, Retryable),
    "firmware request error": (Misuse, Misuse),
    "write init": (None, Retryable),
    "write init error": (Rejected, Rejected),
    "write": (None, Retryable),
    "write error": (Rejected, Rejected),
    "write complete": (None, Retryable),
    "write complete error": (Rejected, Rejected),
    "parse header": (None, Retryable),
    "parse header error": (Rejected, Rejected),
    None: (Retryable, Retryable),
}


@pytest.mark.parametrize("state", STATES)
def test_each_state_has_its_family(state: str | None) -> None:
    """Errors at once; a state in between when the time is up; a newer kernel's by whether it says error."""
    found = [trouble_of(state, waited_out=waited_out) for waited_out in (False, True)]

    assert tuple(None if one is None else one.family for one in found) == STATES[state]


def test_the_states_of_a_load_under_way_are_waited_for() -> None:
    """What a process before began is let finish."""
    assert [state for state in STATES if busy_with(state)] == [
        "firmware request",
        "write init",
        "write",
        "write complete",
    ]
