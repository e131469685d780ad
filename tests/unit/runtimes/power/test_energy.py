"""Energy per inference from readings: meters of known energy to 5 %, the uncertainty, and when nothing is told."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from power_rig import METERS, RAPL_RANGE_UJ, Player, Waveform, energy_mj, plant
from regatta_protocol.values import Power
from regatta_runtimes.power.energy import Idle, Run, energy_of, idle_of
from regatta_runtimes.power.level import MIN_PERIODS, Level, Span, level, period_seen
from regatta_runtimes.power.rapl import find_rapl
from regatta_runtimes.power.sensor import PowerSensor, Reading, UnknownPower

INFERENCES = 1000
IDLE_MW = 1000.0


def sensor_of(period_s: float = 0.1, *, counts: bool = False, step_mw: float | None = None) -> PowerSensor:
    def never(_clock: object) -> Reading:
        raise AssertionError("the integration reads nothing")

    return PowerSensor("probe", "board", "measured", period_s, never, counts=counts, step_mw=step_mw)


def steady(power_mw: float, seconds: float = 10.0, *, begin_s: float = 0.0, every_s: float = 0.05) -> Span:
    count = round(seconds / every_s)
    readings = tuple(Reading(begin_s + (index + 0.5) * every_s, power_mw) for index in range(count))
    return Span(begin_s, begin_s + seconds, readings)


def noisy(
    power_mw: float, spread_mw: float, chance: random.Random, seconds: float = 10.0, step_mw: float = 0.001
) -> Span:
    span = steady(power_mw, seconds, every_s=0.1)
    return replace(
        span,
        readings=tuple(
            Reading(at, round(chance.gauss(power_mw, spread_mw) / step_mw) * step_mw) for at, _ in span.readings
        ),
    )


def known(found: Level | UnknownPower) -> Level:
    assert isinstance(found, Level), found
    return found


def refused(found: Level | UnknownPower) -> str:
    assert isinstance(found, UnknownPower), found
    return found.reason


def waveform(name: str, duration_s: float, chance: random.Random) -> Waveform:
    return {
        "constant": lambda _t: 4000.0,
        "ramp": lambda t: 3000.0 + 3000.0 * t / duration_s,
        "pulses": lambda t: 6000.0 if t % (duration_s / 6) < duration_s / 12 else 2500.0,
        "noise": lambda _t: chance.gauss(4000.0, 400.0),
    }[name]


def _plays() -> list[tuple[str, str]]:
    """Return each meter with the waveforms that it plays: two where every reading starts a program, else all."""
    shapes = ("pulses", "noise", "constant", "ramp")
    return [(name, shape) for name in METERS for shape in shapes[: 2 if name in ("pi5-pmic", "command") else 4]]


@pytest.mark.parametrize(("name", "shape"), _plays())
def test_known_energy_is_found_to_5_percent(
    name: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sensor, every waveform, at its own period and steps, with idle before and after taken off."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    chance = random.Random(f"{name} {shape}")
    player = Player(METERS[name](tmp_path), chance)
    sensor = player.sensor
    duration_s = 60 * max(sensor.period_s, sensor.interval_s)
    load = waveform(shape, duration_s, chance)
    settle_s = 2 * sensor.period_s

    player.play(lambda _t: IDLE_MW, settle_s)
    before = player.play(lambda _t: IDLE_MW, duration_s)
    player.play(lambda _t: load(0.0), settle_s)
    inferring = player.play(load, duration_s)
    player.play(lambda _t: IDLE_MW, settle_s)
    after = player.play(lambda _t: IDLE_MW, duration_s)
    levels = [known(level(span, sensor, sensor.period_s)) for span in (before, inferring, after)]
    power = energy_of([Run(levels[1], INFERENCES)], idle_of(levels[0], levels[2]), sensor, sensor.period_s)

    expected_mj = (energy_mj(waveform(shape, duration_s, chance), duration_s) - IDLE_MW * duration_s) / INFERENCES
    assert power.energy_per_inference_mj == pytest.approx(expected_mj, rel=0.05)
    assert power.energy_uncertainty_mj is not None
    assert 0 < power.energy_uncertainty_mj < expected_mj / 2
    assert power.idle_power_mw == pytest.approx(IDLE_MW, rel=0.05)


@given(
    starts=st.lists(st.integers(0, RAPL_RANGE_UJ - 1), min_size=1, max_size=3),
    steps=st.lists(st.integers(0, RAPL_RANGE_UJ - 1), min_size=1, max_size=20),
)
def test_a_counter_may_wrap_anywhere(
    starts: list[int], steps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is counted is the sum of the steps, from whatever start and over however many wraps."""
    root = tmp_path_factory.mktemp("rapl")
    zones = [root / f"sys/class/powercap/intel-rapl:{index}" for index in range(len(starts))]
    for index, (zone, start) in enumerate(zip(zones, starts, strict=True)):
        plant(zone, {"name": f"package-{index}", "max_energy_range_uj": str(RAPL_RANGE_UJ), "energy_uj": str(start)})
    (sensor,) = find_rapl(root)
    first = sensor.read(lambda: 0.0).figure
    counted, last = 0, first
    for index, step in enumerate(steps):
        counted += step
        plant(zones[0], {"energy_uj": str((starts[0] + counted) % RAPL_RANGE_UJ)})
        last = sensor.read(lambda now_s=float(index + 1): now_s).figure  # type: ignore[misc]

    assert last - first == pytest.approx(counted / 1000)


@given(
    power_mw=st.floats(100, 50_000), factor=st.floats(0.1, 10), idle_mw=st.floats(1, 90), count=st.integers(1, 10**6)
)
def test_energy_is_linear(power_mw: float, factor: float, idle_mw: float, count: int) -> None:
    """Power, and the count the other way, scale it; nothing else does."""
    sensor = sensor_of()

    def measured(scale: float, inferences: int) -> Power:
        idle = idle_of(known(level(steady(idle_mw * scale), sensor, 0.1)))
        run = Run(known(level(steady(power_mw * scale), sensor, 0.1)), inferences)
        return energy_of([run], idle, sensor, 0.1)

    one, scaled, halved = measured(1.0, count), measured(factor, count), measured(1.0, 2 * count)
    assert one.energy_per_inference_mj is not None
    assert one.energy_per_inference_mj == pytest.approx((power_mw - idle_mw) * 10 / count)
    assert scaled.energy_per_inference_mj == pytest.approx(one.energy_per_inference_mj * factor)
    assert halved.energy_per_inference_mj == pytest.approx(one.energy_per_inference_mj / 2)


@given(idle_mw=st.floats(0, 10_000), load_mw=st.floats(0, 10_000), seed=st.integers(0, 2**32))
def test_energy_is_never_negative_nor_zero(idle_mw: float, load_mw: float, seed: int) -> None:
    """A load under idle, or as good as idle, has no energy and a reason."""
    sensor, chance = sensor_of(), random.Random(seed)
    before = level(noisy(idle_mw + 1, 50, chance), sensor, 0.1)
    inferring = level(noisy(load_mw + 1, 50, chance), sensor, 0.1)
    power = energy_of([Run(known(inferring), 100)], idle_of(known(before)), sensor, 0.1)

    if power.energy_per_inference_mj is None:
        assert power.reason
        assert load_mw < idle_mw + 400
    else:
        assert power.energy_per_inference_mj > 0
        assert load_mw > idle_mw + 100


@pytest.mark.parametrize("step_mw", [0.001, 1000.0])
@pytest.mark.parametrize("repetitions", [1, 5])
def test_the_truth_lies_within_the_uncertainty_19_times_of_20(step_mw: float, repetitions: int) -> None:
    """200 measurements with noise, drift and steps: at most 1 of 10 misses, and no interval is wide for nothing."""
    sensor = sensor_of()
    misses, widths, errors = 0, [], []
    for seed in range(200):
        chance = random.Random(seed)
        idle_mw, load_mw = chance.uniform(2000, 4000), chance.uniform(6000, 9000)
        drift_mw = chance.gauss(0, 60)
        spans = [noisy(load_mw + drift_mw / 2, 250, chance, 5, step_mw) for _ in range(repetitions)]
        before = noisy(idle_mw, 80, chance, 5, step_mw)
        after = noisy(idle_mw + drift_mw, 80, chance, 5, step_mw)
        idle = idle_of(known(level(before, sensor, 0.1)), known(level(after, sensor, 0.1)))
        power = energy_of([Run(known(level(span, sensor, 0.1)), 100) for span in spans], idle, sensor, 0.1)
        assert power.energy_per_inference_mj is not None and power.energy_uncertainty_mj is not None
        error = abs(power.energy_per_inference_mj - (load_mw - idle_mw) * 5 / 100)
        misses += error > power.energy_uncertainty_mj
        errors.append(error)
        widths.append(power.energy_uncertainty_mj)

    assert misses <= 20
    root_mean_square = math.sqrt(sum(error**2 for error in errors) / len(errors))
    assert sum(widths) / len(widths) < 8 * root_mean_square


def test_repetitions_shrink_the_random_part_and_drift_stays() -> None:
    """Five runs are better than one; an idle that drifted is not."""
    sensor, chance = sensor_of(), random.Random(1)
    runs = [Run(known(level(noisy(5000, 300, chance), sensor, 0.1)), 100) for _ in range(5)]
    quiet = known(level(noisy(1000, 10, chance), sensor, 0.1))
    warmer = known(level(noisy(1400, 10, chance), sensor, 0.1))

    one, five = (energy_of(some, idle_of(quiet, quiet), sensor, 0.1) for some in (runs[:1], runs))
    drifted = energy_of(runs, idle_of(quiet, warmer), sensor, 0.1)

    assert one.energy_uncertainty_mj and five.energy_uncertainty_mj and drifted.energy_uncertainty_mj
    assert five.energy_uncertainty_mj < one.energy_uncertainty_mj
    assert drifted.energy_uncertainty_mj > 2 * 400 / math.sqrt(12) * 10 / 100
    assert (five.repetitions, five.duration_s) == (5, 50)


def test_a_load_within_3_sigma_of_idle_has_power_and_no_energy() -> None:
    """The power is known, so it is told; the energy is not, and the reason has the figures."""
    sensor, chance = sensor_of(), random.Random(2)
    idle = idle_of(known(level(noisy(3000, 100, chance), sensor, 0.1)))

    power = energy_of([Run(known(level(noisy(3150, 100, chance), sensor, 0.1)), 10)], idle, sensor, 0.1)

    assert (power.method, power.energy_per_inference_mj, power.energy_uncertainty_mj) == ("measured", None, None)
    assert power.power_mw == pytest.approx(3150, rel=0.05)
    assert "under 3 sigma" in (power.reason or "")


def test_without_inferences_nothing_is_told() -> None:
    """No division by zero, no zero."""
    idle = Idle(1000.0, 1.0, 1.0)
    power = energy_of([Run(known(level(steady(2000), sensor_of(), 0.1)), 0)], idle, sensor_of(), 0.1)

    assert (power.method, power.power_mw) == ("none", None)


SILENT = steady(2000, 10)


@pytest.mark.parametrize(
    ("span", "counts", "words"),
    [
        (replace(SILENT, readings=()), False, "gave no reading"),
        (steady(2000, 1.9), False, f"under {MIN_PERIODS} of its periods"),
        (
            replace(SILENT, readings=SILENT.readings[:100]),
            False,
            "stopped: it gave 100 readings in 10.0 s, and none in the",
        ),
        (replace(SILENT, readings=SILENT.readings[::15]), False, "14 readings in 10.0 s, and 20 are needed"),
        (replace(SILENT, readings=SILENT.readings[:60] + SILENT.readings[140:]), False, "silent for"),
        (steady(0.0), False, "says 0 mW in all of 200 readings"),
        (steady(123.0), True, "did not count"),
    ],
    ids=["nothing", "short", "stopped", "few", "gap", "zero", "counter"],
)
def test_a_span_that_tells_nothing_says_why(span: Span, counts: bool, words: str) -> None:
    """Unknown with the count, and the sensor's last fault along."""
    reason = refused(level(span, sensor_of(counts=counts), 0.1, "the bus is dead"))

    assert words in reason
    assert "the bus is dead" in reason


def test_a_sensor_that_freezes_in_the_middle_is_found_out() -> None:
    """Live figures, then the same one for 20 periods."""
    chance = random.Random(3)
    live = noisy(3000, 50, chance, 10)
    frozen = tuple(Reading(at, 3011.0) if at > 4 else Reading(at, power) for at, power in live.readings)

    assert "froze: it gave 3011 mW" in refused(level(replace(live, readings=frozen), sensor_of(), 0.1))


def test_a_sensor_that_freezes_as_the_load_begins_is_found_out() -> None:
    """Idle changes from period to period, and the load never."""
    sensor, chance = sensor_of(), random.Random(4)
    idle = idle_of(known(level(noisy(1000, 20, chance), sensor, 0.1)))

    power = energy_of([Run(known(level(steady(5000), sensor, 0.1)), 100)], idle, sensor, 0.1)

    assert power.method == "none"
    assert "froze: it gave 5000 mW" in (power.reason or "")


def test_a_sensor_that_never_changes_is_unknown() -> None:
    """The same figure idle and inferring: frozen, or too coarse; never an energy of 0."""
    sensor = sensor_of()
    same = known(level(steady(6000), sensor, 0.1))

    power = energy_of([Run(same, 100)], idle_of(same, same), sensor, 0.1)

    assert (power.method, power.energy_per_inference_mj) == ("none", None)
    assert "6000 mW in every reading" in (power.reason or "")


def test_a_steady_load_with_an_unknown_step_says_so() -> None:
    """A figure without noise looks more certain than it is."""
    sensor = sensor_of()
    idle = idle_of(known(level(steady(1000), sensor, 0.1)))
    run = Run(known(level(steady(5000), sensor, 0.1)), 100)
    told = sensor_of(step_mw=100.0)
    run_told = Run(known(level(steady(5000), told, 0.1)), 100)

    unsure, sure = energy_of([run], idle, sensor, 0.1), energy_of([run_told], idle, told, 0.1)

    assert "step is unknown" in (unsure.reason or "")
    assert (unsure.energy_uncertainty_mj, sure.reason) == (None, None)
    assert sure.energy_uncertainty_mj == pytest.approx(2 * math.sqrt(2) * 100 / math.sqrt(12) * 10 / 100)


@pytest.mark.parametrize(
    ("renewed_s", "noise_mw", "seen_s"),
    [(0.1, 50.0, 0.1), (1.0, 50.0, 1.0), (4.0, 50.0, 4.0), (0.1, 0.0, 0.1)],
    ids=["as stated", "ten times slower", "four changes in all", "constant"],
)
def test_the_refresh_period_is_seen(renewed_s: float, noise_mw: float, seen_s: float) -> None:
    """A sensor that is renewed less often than it says; a constant one is believed."""
    chance = random.Random(5)
    held = [chance.gauss(3000, noise_mw) if noise_mw else 3000.0 for _ in range(200)]
    readings = [Reading(at, held[int(at / renewed_s)]) for at in (index * 0.05 for index in range(380))]

    assert period_seen(readings, sensor_of(0.1)) == pytest.approx(seen_s, rel=0.1)
