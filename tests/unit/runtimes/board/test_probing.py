"""Probes over hostile and partial trees, the accelerators they tell apart, and what identifies a kind of board."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from board_trees import BOARDS, lay_out, tree_text
from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.board.accelerators import Signs, find_accelerators
from regatta_runtimes.board.cpu import cpu_features, cpu_name, listed_cores
from regatta_runtimes.board.delegates import DELEGATES
from regatta_runtimes.board.libraries import find_library, library_version, vulkan_drivers
from regatta_runtimes.board.offers import survey
from regatta_runtimes.board.probe import probe_board
from regatta_runtimes.board.record import record_board
from regatta_runtimes.board.thermal import HeatReader
from regatta_runtimes.sysfs import entries, link_name, read_number, read_text


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below the root; a text that begins with -> is a link."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            path.symlink_to(content[3:])
        else:
            path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"sys/bus/pci/devices/0:1/vendor": "0x1ac1", "sys/bus/pci/devices/0:1/device": "0x089a"}, ["coral-pcie"]),
        ({"sys/bus/usb/devices/1-1/idVendor": "1a6e", "sys/bus/usb/devices/1-1/idProduct": "089a"}, ["coral-usb"]),
        ({"sys/bus/usb/devices/1-1/idVendor": "18d1", "sys/bus/usb/devices/1-1/idProduct": "4ee7"}, []),
        ({"sys/class/accel/accel0/device/driver": "-> ../drivers/intel_vpu"}, ["intel-npu"]),
        ({"sys/class/accel/accel0/device/driver": "-> ../drivers/ethosu"}, ["ethosu-accel"]),
        ({"sys/class/accel/accel0/device/driver": "-> ../drivers/strange"}, ["strange"]),
        ({"dev/accel/accel0": ""}, []),
        ({"sys/class/drm/renderD128/device/driver": "-> ../drivers/vgem"}, []),
        ({"sys/class/drm/renderD128/device/driver": "-> ../drivers/amdgpu"}, ["gpu"]),
        ({"dev/galcore": ""}, []),
        ({"dev/galcore": "", "proc/device-tree/compatible": "fsl,imx8mm\0"}, []),
        ({"dev/galcore": "", "proc/device-tree/compatible": "x,board\0fsl,imx8mp\0"}, ["imx8mp-npu"]),
        ({"sys/bus/platform/drivers/etnaviv-gpu/38500000.npu/uevent": ""}, ["etnaviv-npu"]),
        ({"proc/device-tree/compatible": "ti,am62a7-sk\0ti,am62a7\0"}, ["ti-c7x"]),
        ({"dev/fastrpc-cdsp": ""}, ["qualcomm-htp"]),
        ({"proc/device-tree/compatible": "nvidia,p3450\0nvidia,tegra210\0"}, ["jetson"]),
    ],
)  # fmt: skip
def test_an_accelerator_is_told_by_its_own_signs(tmp_path: Path, files: Mapping[str, str], found: list[str]) -> None:
    """Ids, drivers, nodes and compatible strings; a node that several boards share tells nothing alone."""
    assert [one.name for one in find_accelerators(plant(tmp_path, files))] == found


def test_an_accelerator_knows_its_nodes_and_its_driver(tmp_path: Path) -> None:
    """The device file of a USB stick is named by bus and number, that of an NPU by its class."""
    plant(
        tmp_path,
        {
            "sys/bus/usb/devices/2-1/idVendor": "18d1",
            "sys/bus/usb/devices/2-1/idProduct": "9302",
            "sys/bus/usb/devices/2-1/busnum": "2",
            "sys/bus/usb/devices/2-1/devnum": "12",
            "dev/bus/usb/002/012": "",
            "sys/class/accel/accel0/device/driver": "-> ../drivers/rocket",
        },
    )

    coral, rocket = find_accelerators(tmp_path)

    assert (coral.name, coral.nodes, coral.driver) == ("coral-usb", (tmp_path / "dev/bus/usb/002/012",), None)
    assert (rocket.name, rocket.nodes, rocket.driver) == ("rocket", (tmp_path / "dev/accel/accel0",), "rocket")


def test_a_users_signs_add_an_accelerator(tmp_path: Path) -> None:
    """By the same kinds of signs as ours."""
    plant(tmp_path, {"dev/mynpu0": ""})

    assert [one.name for one in find_accelerators(tmp_path, {"mynpu": Signs(paths=("dev/mynpu*",))})] == ["mynpu"]


@pytest.mark.parametrize("path", ["/dev/x", "dev/../etc/x", "dev/**/x", ""])
def test_signs_stay_below_the_root(path: str) -> None:
    """An absolute path, one that climbs, and one that searches the whole disk are refused."""
    with pytest.raises(ValueError, match="paths"):
        Signs(paths=(path,))


X86 = (
    "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu avx2 sse4_1\n\n"
    "processor\t: 1\nmodel name\t: A\nflags\t\t: fpu avx2\n"
)
BIG_LITTLE = (
    "processor : 0\nFeatures : asimd asimddp i8mm\nCPU implementer : 0x41\nCPU part : 0xd05\n\n"
    "processor : 1\nFeatures : asimd asimddp\nCPU implementer : 0x61\nCPU part : 0x022\n"
)


@pytest.mark.parametrize(
    ("text", "name", "features", "cores"),
    [
        (X86, "A", ("avx2",), 2),
        (BIG_LITTLE, "1x ARM implementer 0x61 part 0x022, 1x Cortex-A55", ("asimd", "asimddp"), 2),
        ("processor : 0\nFeatures : half thumb neon vfpv4\n", None, ("neon", "vfpv4"), 1),
        ("", None, (), None),
        ("flags :\nmodel name :\n", None, (), None),
    ],
)
def test_cpuinfo(text: str, name: str | None, features: tuple[str, ...], cores: int | None) -> None:
    """The features that all cores have; the kinds of cores by name; nothing of nothing."""
    assert (cpu_name(text), cpu_features(text), listed_cores(text)) == (name, features, cores)


def test_libraries_are_found_and_say_their_version(tmp_path: Path) -> None:
    """In Debian's multiarch folder, by a link, and by a user's own path."""
    plant(
        tmp_path,
        {
            "usr/lib/aarch64-linux-gnu/libedgetpu.so.1": "-> libedgetpu.so.1.0",
            "usr/lib/aarch64-linux-gnu/libedgetpu.so.1.0": "12345",
            "opt/npu/libmine.so": "123",
        },
    )

    edgetpu, mine = find_library("libedgetpu.so.1", tmp_path), find_library("/opt/npu/libmine.so", tmp_path)

    assert edgetpu is not None and library_version(edgetpu) == "1.0, 5 bytes"
    assert mine is not None and library_version(mine) == "3 bytes"
    assert find_library("libother.so", tmp_path) is None


def test_vulkan_drivers_of_the_cpu_do_not_count(tmp_path: Path) -> None:
    """lavapipe is refused by the runtimes; a manifest that cannot be read has a driver of unknown version."""
    plant(
        tmp_path,
        {
            "usr/share/vulkan/icd.d/lvp_icd.x86_64.json": '{"ICD": {"api_version": "1.3"}}',
            "usr/share/vulkan/icd.d/radeon_icd.x86_64.json": '{"ICD": {"api_version": "1.3.230"}}',
            "etc/vulkan/icd.d/nvidia_icd.json": "[" * 50_000,
        },
    )

    assert vulkan_drivers(tmp_path) == {"radeon": "1.3.230", "nvidia": "unknown"}


def test_reads_are_bounded_and_never_block(tmp_path: Path) -> None:
    """A huge file is cut; a FIFO, a folder, a loop of links and a closed file are nothing."""
    (tmp_path / "huge").write_bytes(b"7" * 1_000_000)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")

    assert len(read_text(tmp_path / "huge") or "") == 65_536
    assert read_number(tmp_path / "huge") is None
    assert [read_text(tmp_path / name) for name in ("folder", "fifo", "loop", "gone", "a\0b")] == [None] * 5
    assert (link_name(tmp_path / "loop"), link_name(tmp_path / "huge")) == ("loop", None)
    assert list(entries(tmp_path / "huge", "*")) == []


def test_names_are_cut_to_what_a_report_can_carry(tmp_path: Path) -> None:
    """64 KB in the place of a model, an architecture or a kernel's release."""
    long = "é" * 10_000
    plant(
        tmp_path,
        {"proc/device-tree/model": long, "proc/sys/kernel/arch": long, "proc/sys/kernel/osrelease": long},
    )

    facts = probe_board(tmp_path)

    assert {len(text or "") for text in (facts.model, facts.machine, facts.kernel)} == {200}


_WRECKS = st.sampled_from(["empty", "binary", "huge", "folder", "loop", "fifo", "closed", "gone", "number", "words"])


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    board=st.sampled_from(BOARDS), wrecks=st.lists(st.tuples(st.integers(0, 10_000), _WRECKS), min_size=1, max_size=12)
)
def test_no_wreck_of_a_board_raises(board: str, wrecks: list[tuple[int, str]]) -> None:
    """Whatever becomes of its files, probing, surveying, heat and recording give an answer."""
    with TemporaryDirectory() as folder:
        root = lay_out(tree_text(board), Path(folder))
        paths = sorted(path for path in root.rglob("*"))
        for place, wreck in wrecks:
            _wreck(paths[place % len(paths)], wreck)

        facts = probe_board(root)

        assert BoardFacts.model_validate_json(facts.model_dump_json()) == facts
        assert len(facts.fingerprint_text()) < 4096
        survey(facts, DELEGATES, root)
        HeatReader(root).read()
        record_board(root)


def _wreck(path: Path, wreck: str) -> None:
    """Put something else in a path's place; a folder loses what is in it."""
    if not path.parent.is_dir() or path.parent.is_symlink():
        return
    if path.is_symlink() or path.is_file() or path.is_fifo():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    if wreck == "folder":
        path.mkdir()
    elif wreck == "loop":
        path.symlink_to(path.name)
    elif wreck == "fifo":
        os.mkfifo(path)
    elif wreck != "gone":
        texts = {
            "binary": bytes(range(256)) * 9,
            "huge": b"processor : 9\n" * 20_000,
            "number": b"-99999999999999999999",
        }
        path.write_bytes(texts.get(wreck, b"" if wreck == "empty" else b"words \xff"))
        if wreck == "closed":
            path.chmod(0)


FACTS = st.builds(
    BoardFacts,
    model=st.none() | st.text(max_size=20),
    machine=st.sampled_from([None, "aarch64", "x86_64"]),
    cpu=st.none() | st.text(max_size=20),
    cores=st.none() | st.integers(1, 256),
    memory_bytes=st.none() | st.integers(1 << 26, 1 << 40),
    cpu_features=st.lists(st.sampled_from(["avx2", "asimd", "i8mm"]), unique=True).map(tuple),
    accelerators=st.lists(st.sampled_from(["coral-usb", "gpu", "rocket"]), unique=True).map(tuple),
)
CHANGING = st.fixed_dictionaries(
    {
        "temperature_c": st.none() | st.floats(0, 100),
        "throttled": st.none() | st.booleans(),
        "power_sensor": st.none() | st.sampled_from(["ina3221", "rapl"]),
        "kernel": st.none() | st.text(max_size=10),
        "drivers": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    }
)


@given(FACTS, CHANGING)
def test_what_changes_leaves_the_fingerprint(facts: BoardFacts, changing: dict[str, object]) -> None:
    """Heat, throttling, the power sensor, kernel and drivers, and the order in which things were found."""
    turned = {"cpu_features": facts.cpu_features[::-1], "accelerators": facts.accelerators[::-1]}

    assert facts.model_copy(update={**changing, **turned}).fingerprint_text() == facts.fingerprint_text()


@given(FACTS, FACTS)
def test_boards_of_different_kinds_differ(one: BoardFacts, other: BoardFacts) -> None:
    """Texts with any signs in them cannot make two kinds look alike."""

    def kind(facts: BoardFacts) -> object:
        return facts.model, facts.machine, facts.cpu, facts.cores, {*facts.cpu_features}, {*facts.accelerators}

    if kind(one) != kind(other):
        assert one.fingerprint_text() != other.fingerprint_text()


@pytest.mark.parametrize("gib", [0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64])
@given(share=st.floats(0.80, 1.0))
def test_memory_counts_by_the_size_of_its_chips(gib: float, share: float) -> None:
    """What firmware and kernel keep, up to a fifth, does not make another kind of board."""
    full = BoardFacts(memory_bytes=int(gib * (1 << 30)))

    assert BoardFacts(memory_bytes=int(gib * share * (1 << 30))).fingerprint_text() == full.fingerprint_text()
