"""Board probing over recorded trees of Raspberry Pi 5, Jetson, Coral and a plain PC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from regatta_protocol.measurement import BoardFacts, Outcome
from regatta_runtimes.board import probe_board
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.enumerate import Entrant, default_threads, enumerate_candidates

ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\nprocessor\t: 1\nCPU implementer\t: 0x41\n"
X86 = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\n\nprocessor\t: 1\nmodel name\t: AMD EPYC 7B13\n"
COMMON = {
    "proc/meminfo": "MemTotal:        8058612 kB\nMemFree: 1 kB\n",
    "proc/sys/kernel/osrelease": "6.6.31\n",
    "sys/class/thermal/thermal_zone0/temp": "48250\n",
}
PI_5 = COMMON | {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/sys/kernel/arch": "aarch64\n",
    "proc/cpuinfo": ARM,
}
JETSON = COMMON | {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 3.0",
    "proc/cpuinfo": ARM,
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon1/in1_input": "5000",
    "sys/class/hwmon/hwmon1/curr1_input": "1000",
}
CORAL_USB = PI_5 | {"sys/bus/usb/devices/2-1/idVendor": "18d1\n", "sys/bus/usb/devices/2-1/idProduct": "9302\n"}
CORAL_FRESH = PI_5 | {"sys/bus/usb/devices/2-1/idVendor": "1a6e\n", "sys/bus/usb/devices/2-1/idProduct": "089a\n"}
CORAL_PCIE = COMMON | {"sys/class/apex/apex_0/temp": "45000", "proc/cpuinfo": X86}
PC = COMMON | {
    "proc/cpuinfo": X86,
    "sys/class/dmi/id/sys_vendor": "Acme\n",
    "sys/class/dmi/id/product_name": "Box 9\n",
    "sys/bus/usb/devices/1-1/idVendor": "18d1\n",
    "sys/bus/usb/devices/1-1/idProduct": "4ee7\n",
}


def plant(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "model", "accelerators", "sensor"),
    [
        (PI_5, "Raspberry Pi 5 Model B Rev 1.0", (), None),
        (JETSON, "NVIDIA Jetson Orin Nano Developer Kit", ("jetson",), "ina3221"),
        (CORAL_USB, "Raspberry Pi 5 Model B Rev 1.0", ("coral-usb",), None),
        (CORAL_FRESH, "Raspberry Pi 5 Model B Rev 1.0", ("coral-usb",), None),
        (CORAL_PCIE, None, ("coral-pcie",), None),
        (PC, "Acme Box 9", (), None),
    ],
    ids=["pi5", "jetson", "coral-usb", "coral-usb-before-use", "coral-pcie", "pc"],
)
def test_each_board_is_known(
    tmp_path: Path, files: Mapping[str, str], model: str | None, accelerators: tuple[str, ...], sensor: str | None
) -> None:
    """Model, accelerators and power sensor by what the board shows."""
    facts = probe_board(plant(tmp_path, files))

    assert (facts.model, facts.accelerators, facts.power_sensor) == (model, accelerators, sensor)
    assert (facts.cores, facts.memory_bytes, facts.temperature_c) == (2, 8058612 * 1024, 48.25)


def test_an_empty_tree_gives_no_facts_and_no_error(tmp_path: Path) -> None:
    """Everything None."""
    assert probe_board(tmp_path) == BoardFacts()


def test_nonsense_is_no_fact(tmp_path: Path) -> None:
    """A thermal zone of 3,000 degrees, a memory size in words."""
    plant(tmp_path, {"sys/class/thermal/thermal_zone0/temp": "3000000", "proc/meminfo": "MemTotal: lots"})

    facts = probe_board(tmp_path)

    assert (facts.temperature_c, facts.memory_bytes) == (None, None)


def test_this_machine_can_be_probed() -> None:
    """The real root gives at least cores, memory and kernel."""
    facts = probe_board()

    assert facts.cores
    assert facts.memory_bytes
    assert facts.kernel


@pytest.mark.parametrize(
    ("cores", "threads"), [(None, (1,)), (1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (64, (1, 2, 4, 8))]
)
def test_thread_counts(cores: int | None, threads: tuple[int, ...]) -> None:
    """Powers of two and all cores, at most eight."""
    assert default_threads(cores) == threads


def test_candidates_are_runtime_by_variant_by_delegate_by_threads() -> None:
    """Two runtimes × two variants × two delegates × two thread counts, fewest threads first."""
    candidates, absent = enumerate_candidates(
        [Entrant("float32"), Entrant("int8")], {"litert": None, "tflite": None}, BoardFacts(), (1, 2)
    )

    assert len(set(candidates)) == 16
    assert [candidate.threads for candidate in candidates] == [1] * 8 + [2] * 8
    assert Candidate("tflite", "int8", "none", 2) in candidates
    assert absent == []


@pytest.mark.parametrize(
    ("requires", "accelerators", "words"),
    [
        ("edgetpu", (), "none was found here (accelerators found: none): plug in a Coral"),
        ("edgetpu", ("jetson",), "accelerators found: jetson"),
        ("edgetpu", ("coral-usb",), "coral-usb is here, but libedgetpu.so.1 was not found"),
        ("abacus", (), "does not know: update the agent or describe it"),
    ],
)
def test_a_variant_for_an_accelerator_is_explained(requires: str, accelerators: tuple[str, ...], words: str) -> None:
    """Absent, another one present, present without backend, unknown."""
    _, absent = enumerate_candidates(
        [Entrant("v", (requires,))], {"litert": None}, BoardFacts(accelerators=accelerators), (1,)
    )

    assert [result.outcome for result in absent] == [Outcome.UNAVAILABLE]
    assert words in (absent[0].reason or "")
