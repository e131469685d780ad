"""Heat: the hottest place, and each way in which a board tells that it slows itself down."""

from __future__ import annotations

from pathlib import Path

import pytest

from regatta_runtimes.board.thermal import Heat, HeatReader, frequency_share


def plant(root: Path, **files: str) -> Path:
    """Write files; __ in a name stands for /."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def _cooling(root: Path, kind: str, state: str) -> Path:
    return plant(
        root,
        sys__class__thermal__cooling_device0__type=kind,
        sys__class__thermal__cooling_device0__cur_state=state,
    )


def test_a_board_without_sensors_tells_nothing(tmp_path: Path) -> None:
    """None, never cool and unthrottled."""
    assert HeatReader(tmp_path).read() == Heat(None, None)


def test_the_hottest_plausible_place_counts(tmp_path: Path) -> None:
    """Zones, a Coral's chip and the processor's hwmon chip; 3,000 degrees and text are nonsense."""
    plant(
        tmp_path,
        sys__class__thermal__thermal_zone0__temp="3000000",
        sys__class__thermal__thermal_zone1__temp="48250",
        sys__class__thermal__thermal_zone2__temp="warm",
        sys__class__apex__apex_0__temp="51000",
        sys__class__hwmon__hwmon0__name="k10temp",
        sys__class__hwmon__hwmon0__temp1_input="62500",
        sys__class__hwmon__hwmon1__name="nvme",
        sys__class__hwmon__hwmon1__temp1_input="80000",
    )

    assert HeatReader(tmp_path).read().temperature_c == 62.5


@pytest.mark.parametrize(
    ("kind", "state", "throttled"),
    [
        ("cpufreq-cpu0", "0", False),
        ("cpufreq-cpu0", "3", True),
        ("thermal-cpufreq-0", "1", True),
        ("devfreq-17000000.gpu", "2", True),
        ("gpu-throttle-alert", "1", True),
        ("Processor", "1", True),
        ("pwm-fan", "3", None),
        ("intel_powerclamp", "-1", None),
        ("TCC Offset", "3", None),
        ("cpufreq-cpu0", "nonsense", None),
    ],
)
def test_cooling_devices_that_slow_a_processor_tell(
    tmp_path: Path, kind: str, state: str, throttled: bool | None
) -> None:
    """A fan at work, and a setting, are no throttling."""
    assert HeatReader(_cooling(tmp_path, kind, state)).read().throttled is throttled


def test_a_raspberry_pis_low_voltage_is_throttling(tmp_path: Path) -> None:
    """Now, and no longer when the supply is good again."""
    plant(tmp_path, sys__class__hwmon__hwmon1__name="rpi_volt", sys__class__hwmon__hwmon1__in0_lcrit_alarm="1")
    reader = HeatReader(tmp_path)

    assert reader.read().throttled is True
    plant(tmp_path, sys__class__hwmon__hwmon1__in0_lcrit_alarm="0")
    assert reader.read().throttled is False


@pytest.mark.parametrize(
    ("counter", "chip"),
    [
        ("sys__devices__system__cpu__cpu0__thermal_throttle__core_throttle_count", None),
        ("sys__devices__system__cpu__cpu0__thermal_throttle__package_throttle_count", None),
        ("sys__class__hwmon__hwmon2__oc3_event_cnt", "soctherm_oc"),
    ],
)
def test_a_counter_tells_by_its_edges(tmp_path: Path, counter: str, chip: str | None) -> None:
    """What was counted before does not count; an event between two reads does, once."""
    plant(tmp_path, **{counter: "14"})
    if chip:
        plant(tmp_path, sys__class__hwmon__hwmon2__name=chip)
    reader = HeatReader(tmp_path)

    seen = [reader.read().throttled]
    plant(tmp_path, **{counter: "15"})
    seen += [reader.read().throttled, reader.read().throttled]
    plant(tmp_path, **{counter: "0"})
    seen.append(reader.read().throttled)

    assert seen == [False, True, False, False]


def test_a_sensor_that_goes_away_is_unknown(tmp_path: Path) -> None:
    """After the reader was made."""
    reader = HeatReader(_cooling(tmp_path, "cpufreq-cpu0", "0"))
    (tmp_path / "sys/class/thermal/cooling_device0/cur_state").unlink()

    assert reader.read() == Heat(None, None)


def test_more_temperatures_may_be_named(tmp_path: Path) -> None:
    """By patterns of files in millidegrees."""
    plant(tmp_path, sys__class__mynpu__npu0__temp="71000")

    assert HeatReader(tmp_path, ["sys/class/mynpu/*/temp"]).read().temperature_c == 71.0


def test_the_clocks_share_is_the_mean_over_the_policies(tmp_path: Path) -> None:
    """A hint; unknown where nothing tells."""
    assert frequency_share(tmp_path) is None
    for number, now in ((0, "600000"), (4, "2400000")):
        folder = f"sys__devices__system__cpu__cpufreq__policy{number}"
        plant(tmp_path, **{f"{folder}__scaling_cur_freq": now, f"{folder}__cpuinfo_max_freq": "2400000"})

    assert frequency_share(tmp_path) == pytest.approx(0.625)
