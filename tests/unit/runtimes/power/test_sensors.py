"""Finding sensors in recorded trees by name, and reading them: known figures, nonsense, silence; never a false 0."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from power_rig import plant, show
from regatta_runtimes.errors import CounterReset, SensorFault
from regatta_runtimes.power import finder
from regatta_runtimes.power.finder import find_sensor, open_sensor
from regatta_runtimes.power.hwmon import find_other_chips
from regatta_runtimes.power.pmic import parse_pmic
from regatta_runtimes.power.rapl import find_rapl
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower
from regatta_runtimes.power.settings import PowerSettings

HWMON = "sys/class/hwmon"
RAPL = "sys/class/powercap/intel-rapl:0"
BATTERY = "sys/class/power_supply/BAT0"
IIO = "sys/bus/i2c/drivers/ina3221x"
PMIC = """\
   3V7_WL_SW_A current(0)=0.00390624A
   3V3_SYS_A current(1)=0.50000000A
     EXT5V_V volt(24)=5.14922000V
   3V7_WL_SW_V volt(8)=3.72312600V
     3V3_SYS_V volt(9)=3.30000000V
      BATT_V volt(25)=0.00000000V
"""


def jetson(chip: str, rails: Mapping[int, tuple[str, str, str]]) -> dict[str, str]:
    files = {f"{HWMON}/{chip}/name": "ina3221\n"}
    for number, (label, volts, amperes) in rails.items():
        files |= {f"{HWMON}/{chip}/in{number}_label": f"{label}\n", f"{HWMON}/{chip}/in{number}_input": volts}
        files |= {f"{HWMON}/{chip}/curr{number}_input": amperes}
    return files


ORIN_NANO = jetson("hwmon1", {1: ("VDD_IN", "5000", "1200"), 2: ("VDD_CPU_GPU_CV", "5000", "400")})
AGX = jetson(
    "hwmon3",
    {1: ("GPU", "5000", "100"), 2: ("CPU", "4000", "200"), 3: ("NC", "9", "9"), 7: ("sum of shunt voltages", "9", "9")},
)
JETPACK_4 = {
    f"{IIO}/6-0040/iio:device0/rail_name_0": "POM_5V_IN\n",
    f"{IIO}/6-0040/iio:device0/in_power0_input": "3100\n",
    f"{IIO}/6-0040/iio:device0/rail_name_1": "POM_5V_GPU\n",
    f"{IIO}/6-0040/iio:device0/in_power1_input": "90\n",
}
INA219 = {f"{HWMON}/hwmon7/name": "ina219", f"{HWMON}/hwmon7/power1_input": "3500000"}
GRAPHICS = {f"{HWMON}/hwmon0/name": "amdgpu", f"{HWMON}/hwmon0/power1_average": "9000000"}
NVME = {f"{HWMON}/hwmon2/name": "nvme", f"{HWMON}/hwmon2/temp1_input": "40000"}
PAIRS = {
    f"{HWMON}/hwmon5/name": "ltc2945",
    f"{HWMON}/hwmon5/in1_input": "12000",
    f"{HWMON}/hwmon5/curr1_input": "500",
    f"{HWMON}/hwmon5/in2_input": "3300",  # no current: no pair
}
ON_BATTERY = {
    f"{BATTERY}/type": "Battery",
    f"{BATTERY}/status": "Discharging\n",
    f"{BATTERY}/voltage_now": "7400000",
    f"{BATTERY}/current_now": "-500000",
    f"{HWMON}/hwmon1/name": "BAT0",  # the kernel shows a battery there too, whichever way it flows
    f"{HWMON}/hwmon1/in0_input": "7400",
    f"{HWMON}/hwmon1/curr1_input": "500",
    f"{HWMON}/hwmon1/in1_input": "7400",
}
MOUSE = {f"{BATTERY}/type": "Battery", f"{BATTERY}/scope": "Device", f"{BATTERY}/power_now": "9"}
RAPL_FILES = {f"{RAPL}/name": "package-0", f"{RAPL}/energy_uj": "1000", f"{RAPL}/max_energy_range_uj": "5000000"}


def opened(found: PowerSensor | UnknownPower) -> PowerSensor:
    assert isinstance(found, PowerSensor), found
    return found


def reason_of(found: PowerSensor | UnknownPower) -> str:
    assert isinstance(found, UnknownPower), found
    return found.reason


def milliwatts(sensor: PowerSensor) -> float:
    return sensor.read(lambda: 0.0).figure


@pytest.mark.parametrize(
    ("files", "name", "coverage", "power_mw"),
    [
        (ORIN_NANO, "ina3221", "VDD_IN", 6000),
        (AGX, "ina3221", "GPU+CPU", 1300),
        (JETPACK_4, "ina3221", "POM_5V_IN", 3100),
        (INA219 | GRAPHICS | RAPL_FILES, "hwmon:ina219", "what the chip ina219 measures", 3500),
        (
            {f"{HWMON}/hwmon0/name": "power_meter", f"{HWMON}/hwmon0/power1_average": "42000000"},
            "hwmon:power_meter",
            "the whole machine",
            42_000,
        ),
        (PAIRS | NVME, "hwmon:ltc2945", "what the chip ltc2945 measures", 6000),
        (ON_BATTERY, "battery:BAT0", "what battery BAT0 gives: the board and what hangs on it", 3700),
        (ON_BATTERY | {f"{BATTERY}/power_now": "5000000"}, "battery:BAT0", None, 5000),
    ],
    ids=["orin-nano", "agx", "jetpack-4", "ina219", "acpi", "pairs", "battery", "battery-power_now"],
)
def test_the_best_sensor_is_found_and_read(
    tmp_path: Path, files: Mapping[str, str], name: str, coverage: str | None, power_mw: float
) -> None:
    """By name, whatever its number; with its unit and what it covers."""
    sensor = opened(find_sensor(plant(tmp_path, files)))

    assert sensor.name == name
    assert coverage in (None, sensor.coverage)
    assert milliwatts(sensor) == pytest.approx(power_mw)


def test_the_number_of_a_chip_does_not_matter(tmp_path: Path) -> None:
    """The same tree with the numbers the other way round gives the same sensor."""
    other = {path.replace("hwmon7", "hwmon0").replace("hwmon2", "hwmon7"): text for path, text in INA219.items()}

    one = opened(find_sensor(plant(tmp_path / "a", INA219 | NVME)))
    two = opened(find_sensor(plant(tmp_path / "b", other | NVME)))

    assert (one.name, milliwatts(one)) == (two.name, milliwatts(two))


def test_two_monitors_of_a_kind_are_told_apart_by_their_device(tmp_path: Path) -> None:
    """The user names the one that measures the board."""
    for number, device, power in ((4, "1-0041", "2000000"), (3, "1-0040", "1000000")):
        chip = tmp_path / f"{HWMON}/hwmon{number}"
        plant(chip, {"name": "ina226", "power1_input": power})
        (tmp_path / f"devices/{device}").mkdir(parents=True)
        (chip / "device").symlink_to(tmp_path / f"devices/{device}")

    second = opened(open_sensor(PowerSettings(sensor="hwmon:ina226@1-0041"), tmp_path))
    wrong = open_sensor(PowerSettings(sensor="hwmon:ina219"), tmp_path)

    assert opened(find_sensor(tmp_path)).name == "hwmon:ina226@1-0040"
    assert milliwatts(second) == 2000
    assert "hwmon:ina226@1-0040, hwmon:ina226@1-0041" in reason_of(wrong)


def test_a_graphics_card_is_measured_only_when_named(tmp_path: Path) -> None:
    """Its power says nothing of inference on the processor."""
    assert find_other_chips(plant(tmp_path, GRAPHICS)) == []
    assert isinstance(find_sensor(tmp_path), UnknownPower)


def test_the_pi_5_sums_its_rails(tmp_path: Path) -> None:
    """Volts times amperes per rail that has both; an estimate, and its coverage says why."""
    plant(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})

    sensor = opened(find_sensor(tmp_path, lambda: PMIC))

    assert (sensor.name, sensor.method) == ("pi5-pmic", "estimated")
    assert "without USB" in sensor.coverage
    assert milliwatts(sensor) == pytest.approx((0.00390624 * 3.723126 + 0.5 * 3.3) * 1000)


def test_a_calibration_is_applied_and_told(tmp_path: Path) -> None:
    """factor · figure + offset, for power; for a counter the offset counts by time."""
    settings = PowerSettings(factor=1.2, offset_mw=300)
    rail = opened(open_sensor(settings, plant(tmp_path / "a", ORIN_NANO)))
    counter = opened(open_sensor(settings, plant(tmp_path / "b", RAPL_FILES)))
    first = counter.read(lambda: 10.0).figure
    plant(tmp_path / "b", {f"{RAPL}/energy_uj": "1001000"})
    second = counter.read(lambda: 12.0).figure

    assert milliwatts(rail) == pytest.approx(6000 * 1.2 + 300)
    assert "calibrated" in rail.coverage
    assert second - first == pytest.approx(1000 * 1.2 + 2 * 300)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no power sensor was found"),
        ({"proc/device-tree/model": "Some Other Board"}, "no power sensor was found"),
        ({"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4"}, "has no power sensor"),
        ({"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0"}, "install vcgencmd"),
        (ON_BATTERY | {f"{BATTERY}/status": "Charging"}, "battery BAT0 is charging: unplug"),
        (MOUSE, "no power sensor was found"),
        (jetson("hwmon0", {1: ("NC", "1", "1")}), "no power sensor was found"),
    ],
    ids=["nothing", "other board", "pi 4", "pi 5", "charging", "mouse", "not connected"],
)
def test_without_a_sensor_the_reason_is_told(tmp_path: Path, files: Mapping[str, str], words: str) -> None:
    """Unknown, with what to do."""
    assert words in reason_of(find_sensor(plant(tmp_path, files)))


def test_rapl_that_only_root_may_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for any other user, whoever runs the test."""
    plant(tmp_path, RAPL_FILES)
    real = Path.open

    def guarded(path: Path, mode: str = "r") -> IO[Any]:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path, mode)

    monkeypatch.setattr(Path, "open", guarded)

    reason = reason_of(find_sensor(tmp_path))

    assert "RAPL is here" in reason and "only root may" in reason


NONSENSE = ["", "abc", "-5000", "999999999999", "nan", "1e9", "9" * 60, "\0\0", "5000 mW"]


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize(
    ("files", "path"),
    [
        (ORIN_NANO, f"{HWMON}/hwmon1/in1_input"),
        (ORIN_NANO, f"{HWMON}/hwmon1/curr1_input"),
        (JETPACK_4, f"{IIO}/6-0040/iio:device0/in_power0_input"),
        (INA219, f"{HWMON}/hwmon7/power1_input"),
        (PAIRS, f"{HWMON}/hwmon5/curr1_input"),
        (ON_BATTERY, f"{BATTERY}/voltage_now"),
        (RAPL_FILES, f"{RAPL}/energy_uj"),
    ],
    ids=["volts", "amperes", "iio", "hwmon", "pairs", "battery", "rapl"],
)
def test_nonsense_is_a_fault_with_its_words_and_never_a_figure(
    tmp_path: Path, files: Mapping[str, str], path: str, nonsense: str
) -> None:
    """Text, negative, far too much, no number at all; and the next good figure is one again."""
    sensor = opened(find_sensor(plant(tmp_path, files)))
    good = sensor.read(lambda: 1.0)

    plant(tmp_path, {path: nonsense})
    with pytest.raises(SensorFault, match=r"says|no board"):
        sensor.read(lambda: 2.0)
    plant(tmp_path, files)
    with contextlib.suppress(CounterReset):  # a counter's jump back is told once
        sensor.read(lambda: 3.0)

    assert sensor.read(lambda: 4.0).figure >= good.figure


@pytest.mark.parametrize("failure", ["gone", "closed"])
def test_a_file_that_vanishes_or_closes_says_which(tmp_path: Path, failure: str) -> None:
    """A chip that was unbound; a bus that answers with an error."""
    sensor = opened(find_sensor(plant(tmp_path, INA219)))
    path = tmp_path / f"{HWMON}/hwmon7/power1_input"
    path.unlink()
    if failure == "closed":
        path.mkdir()

    with pytest.raises(SensorFault, match=r"power1_input (is gone|cannot be read)"):
        sensor.read(lambda: 0.0)


def test_a_counter_that_is_set_back_does_not_join(tmp_path: Path) -> None:
    """After a suspend the counter may begin anew: as a wrap that would be more than a board can draw."""
    (sensor,) = find_rapl(plant(tmp_path, RAPL_FILES | {f"{RAPL}/max_energy_range_uj": "262143328850"}))
    sensor.read(lambda: 1.0)
    plant(tmp_path, {f"{RAPL}/energy_uj": "500"})

    with pytest.raises(CounterReset, match="jumped by 262143 J"):
        sensor.read(lambda: 2.0)


@given(st.text(max_size=200))
def test_any_output_of_vcgencmd_is_read_or_a_fault(text: str) -> None:
    """Nothing else is raised; no rails, no figure."""
    with contextlib.suppress(SensorFault):
        assert parse_pmic(text) >= 0


@pytest.fixture
def blocked() -> Iterator[Callable[[Path], None]]:
    """Puts a pipe without a writer in a file's place: opening it hangs, as a driver's read may. Let go at the end."""
    pipes: list[Path] = []

    def block(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        pipes.append(path)

    yield block
    for pipe in pipes:
        while any(thread.name == "probe" for thread in threading.enumerate()):
            with contextlib.suppress(OSError):
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


def test_a_probe_that_hangs_costs_its_time_limit(
    tmp_path: Path, blocked: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that never answers stops neither the daemon nor a race."""
    plant(tmp_path, RAPL_FILES)
    blocked(tmp_path / f"{RAPL}/energy_uj")
    monkeypatch.setattr(finder, "_PROBE_S", 0.2)

    assert "hangs: no answer within 0.2 s" in reason_of(find_sensor(tmp_path))


def test_figures_are_written_as_a_kernel_would(tmp_path: Path) -> None:
    """The rig itself: a reader sees the old figure or the new one, and nothing else is left in the folder."""
    show(tmp_path / "a/b", "1")
    show(tmp_path / "a/b", "22")

    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a/b").read_text() == "22"
