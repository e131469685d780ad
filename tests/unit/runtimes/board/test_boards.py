"""What Regatta finds on each recorded board (tests/boards), to the last field, and which delegates it offers there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from board_trees import BOARDS, lay_out, tree_text
from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.board.delegates import DELEGATES
from regatta_runtimes.board.offers import survey
from regatta_runtimes.board.probe import probe_board
from regatta_runtimes.board.record import MAX_BYTES, record_board

A55_UP = ("asimd", "asimddp", "asimdhp", "asimdrdm", "fphp")
N100 = ("avx", "avx2", "avx_vnni", "f16c", "fma", "gfni", "sse4_1", "sse4_2", "ssse3")
PI_FIRMWARE = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Expected:
    """A board's facts; its fingerprint's memory in MiB; delegate -> (library or "", what it lacks, words of a hint)."""

    facts: BoardFacts
    memory_mib: int
    delegates: dict[str, tuple[str, str, str]]


def _arm(**facts: object) -> BoardFacts:
    return BoardFacts.model_validate({"machine": "aarch64", "throttled": False, **facts})


EXPECTED = {
    "raspberry-pi-4": Expected(
        _arm(
            model="Raspberry Pi 4 Model B Rev 1.4",
            cpu="Cortex-A72",
            cores=4,
            memory_bytes=3885396 * 1024,
            kernel="6.6.31+rpt-rpi-v8",
            cpu_features=("asimd",),
            accelerators=("gpu",),
            drivers={"raspberrypi-firmware": PI_FIRMWARE, "v3d": "of kernel 6.6.31+rpt-rpi-v8"},
            temperature_c=48.686,
        ),
        4096,
        {"gpu": ("", "a Vulkan driver", "apt-get install mesa-vulkan-drivers")},
    ),
    "coral-usb": Expected(
        _arm(
            model="Raspberry Pi 4 Model B Rev 1.4",
            cpu="Cortex-A72",
            cores=4,
            memory_bytes=3885396 * 1024,
            kernel="6.6.31+rpt-rpi-v8",
            cpu_features=("asimd",),
            accelerators=("coral-usb", "gpu"),
            drivers={
                "libedgetpu.so.1": "1.0, 1000000 bytes",
                "raspberrypi-firmware": PI_FIRMWARE,
                "v3d": "of kernel 6.6.31+rpt-rpi-v8",
            },
            temperature_c=48.686,
        ),
        4096,
        {
            "edgetpu": ("libedgetpu.so.1", "", ""),
            "gpu": ("", "a Vulkan driver", "apt-get install mesa-vulkan-drivers"),
        },
    ),
    "raspberry-pi-5": Expected(
        _arm(
            model="Raspberry Pi 5 Model B Rev 1.0",
            cpu="Cortex-A76",
            cores=4,
            memory_bytes=8241216 * 1024,
            kernel="6.6.31+rpt-rpi-2712",
            cpu_features=A55_UP,
            accelerators=("gpu",),
            drivers={
                "raspberrypi-firmware": PI_FIRMWARE,
                "v3d": "of kernel 6.6.31+rpt-rpi-2712",
                "vulkan broadcom": "1.3.255",
            },
            temperature_c=50.25,
        ),
        8192,
        {"gpu": ("", "", "")},
    ),
    "coral-pcie": Expected(
        _arm(
            model="Freescale i.MX8MQ Phanbell",
            cpu="Cortex-A53",
            cores=4,
            memory_bytes=1003296 * 1024,
            kernel="4.14.98-imx",
            cpu_features=("asimd",),
            accelerators=("coral-pcie",),  # /dev/galcore is here too, and this i.MX has no NPU
            drivers={
                "apex": "1.0",
                "galcore": "of kernel 4.14.98-imx",
                "gasket": "1.1.2",
                "libedgetpu.so.1": "1.0, 1000000 bytes",
            },
            temperature_c=51.0,
        ),
        1024,
        {"edgetpu": ("libedgetpu.so.1", "", "")},
    ),
    "jetson-orin": Expected(
        _arm(
            model="NVIDIA Jetson Orin Nano Developer Kit",
            cpu="Cortex-A78AE",
            cores=6,
            memory_bytes=7802812 * 1024,
            kernel="5.15.136-tegra",
            cpu_features=A55_UP,
            accelerators=("jetson",),
            drivers={
                "jetson-linux": "36.3.0",
                "nvgpu": "of kernel 5.15.136-tegra",
                "nvidia": "540.3.0",
                "vulkan nvidia": "1.3.251",
            },
            power_sensor="ina3221",
            temperature_c=47.468,
        ),
        8192,
        {
            "gpu": ("", "", ""),
            "cuda": ("", "the Python package onnxruntime-gpu", "JetPack"),
            "tensorrt": ("", "the Python package onnxruntime-gpu", "JetPack"),
        },
    ),
    "imx8m-plus": Expected(
        _arm(
            model="NXP i.MX8MPlus EVK board",
            cpu="Cortex-A53",
            cores=4,
            memory_bytes=5860456 * 1024,
            kernel="6.1.55-lts-next",
            cpu_features=("asimd",),
            accelerators=("imx8mp-npu",),
            drivers={"galcore": "6.4.11.p2.745085 built at 00:00:00 00/00/00", "libvx_delegate.so": "1000000 bytes"},
            temperature_c=47.0,
        ),
        6144,
        {"vx": ("libvx_delegate.so", "", "")},
    ),
    "imx93": Expected(
        _arm(
            model="NXP i.MX93 11X11 EVK board",
            cpu="Cortex-A55",
            cores=2,
            memory_bytes=1985568 * 1024,
            kernel="6.6.52-lts-next",
            cpu_features=A55_UP,
            accelerators=("ethosu",),
            drivers={"ethosu": "of kernel 6.6.52-lts-next"},
            temperature_c=41.0,
        ),
        2048,
        {"ethosu": ("", "libethosu_delegate.so", "tensorflow-lite-ethosu-delegate")},
    ),
    "rk3588": Expected(
        _arm(
            model="Radxa ROCK 5B",
            cpu="4x Cortex-A55, 4x Cortex-A76",
            cores=8,
            memory_bytes=16331160 * 1024,
            kernel="6.18.1-arm64",
            cpu_features=A55_UP,
            accelerators=("gpu", "rocket"),
            drivers={
                "panthor": "of kernel 6.18.1-arm64",
                "rocket": "of kernel 6.18.1-arm64",
                "vulkan panfrost": "1.4.305",
            },
            temperature_c=45.307,
        ),
        16384,
        {"gpu": ("", "", ""), "teflon": ("", "libteflon.so", "mesa-teflon-delegate, of Mesa 25.3 or later")},
    ),
    "kria-kv260": Expected(
        _arm(
            model="ZynqMP KV260 revB",
            cpu="Cortex-A53",
            cores=4,
            memory_bytes=4026036 * 1024,
            kernel="5.15.0-1027-xilinx-zynqmp",
            cpu_features=("asimd",),
            accelerators=("fpga",),
            drivers={"zocl": "of kernel 5.15.0-1027-xilinx-zynqmp"},
            power_sensor="hwmon:ina260_u14",
            throttled=None,
        ),
        4096,
        {"fpga": ("", "a library that drives it", "load an overlay, and describe the library")},
    ),
    "pc": Expected(
        BoardFacts(
            model="AZW MINI S",
            machine="x86_64",
            cpu="Intel(R) N100",
            cores=4,
            memory_bytes=16130964 * 1024,
            kernel="6.1.0-21-amd64",
            cpu_features=N100,
            accelerators=("gpu",),
            drivers={"i915": "of kernel 6.1.0-21-amd64", "vulkan intel": "1.3.230"},
            power_sensor="rapl",
            temperature_c=52.0,
            throttled=False,
        ),
        16384,
        {"gpu": ("", "", "")},
    ),
}


def test_every_recorded_board_has_its_expectation() -> None:
    """No tree lies there untested, and no expectation without its tree."""
    assert set(EXPECTED) == set(BOARDS)


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_is_known_to_the_last_fact(tmp_path: Path, board: str) -> None:
    """Model, processor, memory, accelerators, drivers, sensor, heat; and what identifies its kind."""
    expected = EXPECTED[board]

    facts = probe_board(lay_out(tree_text(board), tmp_path))

    assert facts == expected.facts
    kind = ",".join(f'"{feature}"' for feature in facts.cpu_features)
    devices = ",".join(f'"{accelerator}"' for accelerator in facts.accelerators)
    assert facts.fingerprint_text() == (
        f'["{facts.model}","{facts.machine}","{facts.cpu}",{facts.cores},{expected.memory_mib},[{kind}],[{devices}]]'
    )


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_is_offered_its_delegates(tmp_path: Path, board: str) -> None:
    """Those whose accelerator is here, each ready or with what it lacks and how this board gets it."""
    root = lay_out(tree_text(board), tmp_path)

    offers = survey(EXPECTED[board].facts, DELEGATES, root)

    assert [offer.delegate for offer in offers] == list(EXPECTED[board].delegates)
    for offer in offers:
        library, lacks, hint = EXPECTED[board].delegates[offer.delegate]
        assert (offer.library.name if offer.library else "") == library
        assert " and ".join(offer.lacks) == lacks
        assert (hint in (offer.fix or "")) and bool(offer.fix) == bool(lacks)


@pytest.mark.parametrize("board", BOARDS)
def test_a_record_gives_the_same_board_and_the_same_record(tmp_path: Path, board: str) -> None:
    """Recording what was laid out loses nothing that probes see."""
    root = lay_out(tree_text(board), tmp_path / "first")

    text = record_board(root)

    again = lay_out(text, tmp_path / "second")
    assert probe_board(again) == EXPECTED[board].facts
    assert record_board(again) == text
    assert [offer.lacks for offer in survey(EXPECTED[board].facts, DELEGATES, again)] == [
        offer.lacks for offer in survey(EXPECTED[board].facts, DELEGATES, root)
    ]


def test_a_record_holds_nothing_that_names_the_board(tmp_path: Path) -> None:
    """Serial numbers, addresses, host names and the content of libraries stay on the board."""
    root = lay_out(tree_text("coral-usb"), tmp_path)
    secrets = {
        "proc/cpuinfo": (root / "proc/cpuinfo").read_text() + "\nSerial\t\t: 10000000SECRET\nRevision\t: SECRET\n",
        "proc/device-tree/serial-number": "SECRET",
        "proc/device-tree/chosen/bootargs": "SECRET",
        "etc/hostname": "SECRET",
        "sys/bus/usb/devices/2-1/serial": "SECRET",
        "sys/class/dmi/id/product_serial": "SECRET",
        "sys/class/net/eth0/address": "SECRET",
        "usr/lib/aarch64-linux-gnu/libedgetpu.so.1.0": "SECRET",
        "usr/share/vulkan/icd.d/broadcom_icd.json": '{"ICD": {"api_version": "1.3", "library_path": "/home/SECRET"}}',
    }
    for name, text in secrets.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    text = record_board(root)

    assert "SECRET" not in text
    assert 'icd.d/broadcom_icd.json = "{\\"ICD\\": {\\"api_version\\": \\"1.3\\"}}"' in text


def test_a_record_of_a_huge_board_is_bounded(tmp_path: Path) -> None:
    """A folder full of devices with long texts does not fill the disk."""
    for number in range(3000):
        folder = tmp_path / f"sys/bus/pci/devices/{number}"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text("0x8086" * 10_000)

    text = record_board(tmp_path)

    assert len(text) <= MAX_BYTES + 4096
    assert text.count("\n") > 10
