"""Power sensors over recorded trees: known figures, wraps, nonsense, silence; unknown has a reason and is never 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_runtimes.power import (
    HwmonSensor,
    PmicSensor,
    RailsSensor,
    RaplSensor,
    UnknownPower,
    average_power,
    find_sensor,
    parse_pmic,
)

PMIC = """\
   3V7_WL_SW_A current(0)=0.00390624A
   3V3_SYS_A current(1)=0.50000000A
     EXT5V_V volt(24)=5.14922000V
   3V7_WL_SW_V volt(8)=3.72312600V
     3V3_SYS_V volt(9)=3.30000000V
      BATT_V volt(25)=0.00000000V
"""


def plant(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


RAPL = "sys/class/powercap/intel-rapl:0"


def test_rapl_is_the_counters_difference_over_time_with_its_wrap(tmp_path: Path) -> None:
    """2 J in a second is 2 W, also when the counter wraps at its stated range."""
    now = [0.0]
    plant(
        tmp_path, {f"{RAPL}/name": "package-0", f"{RAPL}/energy_uj": "1000", f"{RAPL}/max_energy_range_uj": "5000000"}
    )
    sensor = RaplSensor([tmp_path / RAPL], clock=lambda: now[0])
    assert sensor.read_mw() is None

    now[0] = 1.0
    plant(tmp_path, {f"{RAPL}/energy_uj": "2001000"})
    first = sensor.read_mw()
    now[0] = 3.0
    plant(tmp_path, {f"{RAPL}/energy_uj": "1001000"})
    wrapped = sensor.read_mw()

    assert first == pytest.approx(2000)
    assert wrapped == pytest.approx((5_000_000 - 1_000_000) / 2 / 1000)


def test_a_failed_rapl_read_is_unknown_and_no_wrap_follows(tmp_path: Path) -> None:
    """None at the failure, None at the next (no earlier reading), then figures again."""
    now = [0.0]
    plant(tmp_path, {f"{RAPL}/energy_uj": "1000", f"{RAPL}/max_energy_range_uj": "5000000"})
    sensor = RaplSensor([tmp_path / RAPL], clock=lambda: now[0])
    readings = []
    for energy in ("1000", "", "2000", "3000"):
        plant(tmp_path, {f"{RAPL}/energy_uj": energy})
        readings.append(sensor.read_mw())
        now[0] += 1

    assert readings == [None, None, None, pytest.approx(1.0)]


def test_rapl_that_only_root_may_read_says_so(tmp_path: Path) -> None:
    """The counter is there and gives nothing."""
    plant(tmp_path, {f"{RAPL}/name": "package-0"})
    (tmp_path / RAPL / "energy_uj").mkdir()

    found = find_sensor(tmp_path)

    assert isinstance(found, UnknownPower)
    assert "only root may" in found.reason


def _ina(root: Path, channels: Mapping[int, tuple[str, str, str]]) -> Path:
    chip = "sys/class/hwmon/hwmon3"
    files = {f"{chip}/name": "ina3221\n"}
    for number, (label, volts, amperes) in channels.items():
        files |= {f"{chip}/in{number}_label": label, f"{chip}/in{number}_input": volts}
        files |= {f"{chip}/curr{number}_input": amperes}
    return plant(root, files)


def test_jetson_takes_the_input_rail_alone(tmp_path: Path) -> None:
    """VDD_IN holds the others already: 5 V · 1.2 A."""
    _ina(tmp_path, {1: ("VDD_IN", "5000", "1200"), 2: ("VDD_CPU_GPU_CV", "5000", "400"), 3: ("VDD_SOC", "5000", "300")})

    sensor = find_sensor(tmp_path)

    assert isinstance(sensor, RailsSensor)
    assert (sensor.read_mw(), sensor.coverage) == (6000, "VDD_IN")


def test_jetson_without_an_input_rail_sums_the_others(tmp_path: Path) -> None:
    """NC and the sum of shunt voltages are no rails."""
    _ina(
        tmp_path,
        {
            1: ("GPU", "5000", "100"),
            2: ("CPU", "4000", "200"),
            3: ("NC", "9", "9"),
            7: ("sum of shunt voltages", "9", "9"),
        },
    )

    sensor = find_sensor(tmp_path)

    assert isinstance(sensor, RailsSensor)
    assert (sensor.read_mw(), sensor.coverage) == (1300, "GPU+CPU")


@pytest.mark.parametrize("nonsense", ["", "abc", "-5000", "999999999999"])
def test_a_rail_that_reads_nonsense_gives_none(tmp_path: Path, nonsense: str) -> None:
    """Never 0, never a figure."""
    _ina(tmp_path, {1: ("VDD_IN", nonsense, "1200")})
    sensor = find_sensor(tmp_path)

    assert isinstance(sensor, RailsSensor)
    assert sensor.read_mw() is None


def test_hwmon_power_is_microwatts(tmp_path: Path) -> None:
    """power1_input of any chip, found by its file and named by its chip."""
    chip = "sys/class/hwmon/hwmon0"
    plant(tmp_path, {f"{chip}/name": "ina226", f"{chip}/power1_input": "3500000"})

    sensor = find_sensor(tmp_path)

    assert isinstance(sensor, HwmonSensor)
    assert (sensor.read_mw(), sensor.name) == (3500, "hwmon:ina226")


def test_the_pi_5_sums_its_rails(tmp_path: Path) -> None:
    """Volts times amperes per rail that has both; an estimate, and its coverage says why."""
    plant(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})

    sensor = find_sensor(tmp_path, vcgencmd=lambda: PMIC)

    assert isinstance(sensor, PmicSensor)
    assert sensor.method == "estimated"
    assert sensor.read_mw() == pytest.approx((0.00390624 * 3.723126 + 0.5 * 3.3) * 1000)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "install vcgencmd"),
        ("Raspberry Pi 4 Model B Rev 1.4", "has no power sensor"),
        ("Some Other Board", "no power sensor was found"),
    ],
)
def test_without_a_sensor_the_reason_is_told(tmp_path: Path, model: str, words: str) -> None:
    """Unknown with what to do."""
    plant(tmp_path, {"proc/device-tree/model": model})

    found = find_sensor(tmp_path, vcgencmd=None)

    assert isinstance(found, UnknownPower)
    assert words in found.reason


@given(st.text(max_size=200))
def test_any_output_of_vcgencmd_is_read_or_none(text: str) -> None:
    """Nothing is raised; no rails, no figure."""
    figure = parse_pmic(text)

    assert figure is None or figure >= 0


def test_energy_per_inference_is_power_times_time_over_count(tmp_path: Path) -> None:
    """2 W for 3 s over 600 inferences is 10 mJ each."""
    sensor = HwmonSensor("chip", tmp_path / "power1_input")

    power = average_power(sensor, [2000.0] * 25, inferences=600, busy_s=3.0)

    assert power.energy_per_inference_mj == pytest.approx(10)
    assert (power.power_mw, power.method, power.sensor) == (2000, "measured", "hwmon:chip")


def test_too_few_readings_are_unknown(tmp_path: Path) -> None:
    """A sensor that stopped: the reason counts its readings."""
    sensor = HwmonSensor("chip", tmp_path / "power1_input")

    power = average_power(sensor, [2000.0] * 5 + [None] * 30, inferences=600, busy_s=3.0)

    assert (power.method, power.power_mw, power.energy_per_inference_mj) == ("none", None, None)
    assert "5 readings (30 failed)" in (power.reason or "")
