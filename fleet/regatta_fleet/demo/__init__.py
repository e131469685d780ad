"""`regatta demo`: the main job, end to end, on this machine: a fleet, two devices, a good model and a damaged one.

It starts the same programs that a user starts (`regatta up`, `regatta-agent enroll`, `run` and `infer`) and drives the
fleet through its operator API; nothing is simulated. It does not import the agent: the two meet only on the wire.
With `--json` people's lines go to standard error, so that standard output is one document (document.py).
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from regatta_fleet import figures
from regatta_fleet.cli import device_tables, model_tables, output, race_tables
from regatta_fleet.cli.connection import open_client
from regatta_fleet.cli.model import push_bundle
from regatta_fleet.cli.rollout import follow, story
from regatta_fleet.client import FleetClient
from regatta_fleet.demo.document import device_document, race_of, rollout_document, served_model, variants_document
from regatta_fleet.demo.programs import Programs
from regatta_fleet.home import read_server_info
from regatta_fleet.schemas import GateConfig, RolloutDetail, RolloutRequest, ServingSummary, TokenRequest
from regatta_protocol.errors import RegattaError, Retryable
from regatta_protocol.ids import DeviceId, ModelName, ModelRef
from regatta_protocol.values import Power

if TYPE_CHECKING:
    from regatta_fleet.models.bundle import Bundle

__all__ = ["demo"]

_MODEL = ModelName("digits")
_DEVICES = (DeviceId("harbor-1"), DeviceId("harbor-2"))
_STEPS = 8
_TRIAL_S = 2.0
_POLL_PERIOD_S = 0.1
_INFERENCES = 200
_AGENT = "regatta_agent"

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """What every step needs: the folder that holds it all, and the programs."""

    folder: Path
    programs: Programs

    @property
    def home(self) -> Path:
        return self.folder / "fleet"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.npz"

    def agent_folders(self, device: DeviceId) -> tuple[str, ...]:
        place = self.folder / device
        return ("--state-dir", str(place / "state"), "--run-dir", str(place / "run"))

    def wait(self, what: str, probe: Callable[[], T | None], timeout_s: float = 60.0) -> T:
        """Return the first answer of `probe` that is not None.

        Raises:
            Retryable: when there is none in time, or a program of the demo ended.
        """
        deadline = time.monotonic() + timeout_s
        while (answer := probe()) is None:
            self.programs.check()
            if time.monotonic() > deadline:
                raise Retryable(f"waited {timeout_s:g} s in vain: {what}. Run it with --folder to keep the logs")
            time.sleep(_POLL_PERIOD_S)
        return answer


@click.command(epilog="\b\nExamples:\n  regatta demo\n  regatta demo --exit --json > demo.json")
@click.option("--exit", "end", is_flag=True, help="End by itself when all is shown, with status 0.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Keep everything, logs too, in this new folder (default: a temporary one, removed at the end).",
)
def demo(end: bool, as_json: bool, folder: Path | None) -> None:
    """Run a whole fleet on this machine, from float model to inference.

    Two devices enrol, pull, race and serve a digits model in two waves; a damaged second version is stopped at the
    first. Everything listens on loopback only, and stays up until Ctrl-C, so that you can look at the status page.
    """
    started = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # whatever ends it, its programs end with it
    with ExitStack() as stack:
        if as_json:
            stack.enter_context(redirect_stdout(sys.stderr))
        place = _make_folder(folder)
        if folder is None:
            stack.callback(shutil.rmtree, place, ignore_errors=True)
        stage = Stage(place, stack.enter_context(Programs(place)))
        document = _play(stage)
        document["duration_s"] = round(time.monotonic() - started, 1)
        output.line(f"All shown in {document['duration_s']} s. Status page: {document['page']}", "good")
        if as_json:
            sys.__stdout__.write(json.dumps(document, indent=2) + "\n")  # type: ignore[union-attr]  # a program has one
            sys.__stdout__.flush()  # type: ignore[union-attr]
        if not end:
            _stay(stage)


def _make_folder(asked: Path | None) -> Path:
    if asked is None:
        # A short name: unix socket paths end at 107 bytes.
        return Path(tempfile.mkdtemp(prefix="regatta-"))
    asked.mkdir(parents=True)
    return asked.resolve()


def _stay(stage: Stage) -> None:
    output.line(f"Try in another terminal: regatta status --home {stage.home}")
    output.line("Ctrl-C ends it.")
    try:
        while True:
            stage.programs.check()
            time.sleep(1.0)
    except KeyboardInterrupt:
        output.line("Ending.")


def _step(number: int, text: str) -> None:
    output.line(f"[{number}/{_STEPS}] {text}", "good")


def _play(stage: Stage) -> dict[str, Any]:
    """Show all the steps; returns the document."""
    _step(1, "A fleet: certificate authority, signing keys, database, private broker with mutual TLS")
    stage.programs.start("server", "regatta_fleet", "up", "--home", str(stage.home))
    with stage.wait("the server starts", lambda: _connect(stage)) as fleet:
        page = _page(stage)
        output.line(f"broker {fleet.status().broker}, status page {page}")

        _step(2, "Optimize the float model: int8, and int8 with filters pruned")
        bundle = _optimize(stage)

        _step(3, f"Push the bundle as {_MODEL}:1: signed and stored")
        good = push_bundle(fleet, _MODEL, bundle)
        output.print_table(model_tables.variants(good))

        _step(4, "Two devices enrol with one-time tokens; each makes its own key")
        for device in _DEVICES:
            _enroll(stage, fleet, device)
        stage.wait("the devices connect", lambda: all(device.up for device in fleet.devices()) or None)
        output.line(f"{' and '.join(_DEVICES)} are connected over MQTT")

        _step(5, f"Roll {good.ref} out in two waves: pull, verify, race, serve")
        first = _roll_out(fleet, good.ref)

        _step(6, "Real digits through each device's local API")
        _infer(stage, fleet)

        _step(7, f"Push a damaged {_MODEL}:2; the gate stops it in the first wave")
        damaged = push_bundle(fleet, _MODEL, _damaged_bundle(stage))
        second = _roll_out(fleet, damaged.ref)
        stage.wait(f"the devices are back on {good.ref}", lambda: _all_serve(fleet, good.ref))
        output.line(f"both devices serve {good.ref}", "good")

        _step(8, "What the fleet knows")
        details = [fleet.device(device) for device in _DEVICES]
        for detail in details:
            race = race_of(detail, good.ref)
            if race:
                output.line(f"On {detail.id}:")
                output.print_table(race_tables.race(race))
        output.print_table(device_tables.devices(details, time.time()))
    return {
        "page": page,
        "variants": variants_document(good),
        "devices": [device_document(detail, good.ref) for detail in details],
        "rollouts": [rollout_document(rollout) for rollout in (first, second)],
    }


def _connect(stage: Stage) -> FleetClient | None:
    try:
        client = open_client(stage.home, None)
        client.status()
    except (RegattaError, OSError):
        return None
    return client


def _page(stage: Stage) -> str:
    server = read_server_info(stage.home)
    if server is None:
        raise Retryable(f"the server in {stage.home} has ended: run the demo again")
    return f"{server.url}/?token={server.token}"


def _optimize(stage: Stage) -> Bundle:
    # numpy and the quantizer take a second to import: not before they are needed.
    from regatta_fleet.examples import digits
    from regatta_fleet.examples.digits.data import calibration, evaluation
    from regatta_fleet.models.bundle import Bundle
    from regatta_fleet.models.bundle_source import BundleSource
    from regatta_fleet.optimize.pipeline import optimize
    from regatta_fleet.optimize.trials import VARIANT_SETS

    folder = stage.folder / "bundle-1"
    source = BundleSource(labels=digits.LABELS, evaluation=evaluation(stage.evaluation))
    samples, chosen = calibration(stage.folder / "calibration.npz"), VARIANT_SETS["quick"]
    with output.steps() as progress:
        optimize(digits.MODEL, samples, folder, source, variants=chosen, progress=progress)
    return Bundle.open(folder)


def _damaged_bundle(stage: Stage) -> Bundle:
    from regatta_fleet.examples import digits
    from regatta_fleet.examples.digits.damage import damaged_copy
    from regatta_fleet.models.bare_model import bundle_from_model
    from regatta_fleet.models.bundle_source import BundleSource

    model = damaged_copy(digits.MODEL, stage.folder / "digits_damaged.tflite")
    source = BundleSource(labels=digits.LABELS, evaluation=stage.evaluation)
    with output.steps() as progress:
        return bundle_from_model(model, stage.folder / "bundle-2", source, progress=progress)


def _enroll(stage: Stage, fleet: FleetClient, device: DeviceId) -> None:
    token = fleet.create_token(TokenRequest(device=device)).token
    folders = stage.agent_folders(device)
    stage.programs.run(_AGENT, "enroll", token, *folders[:2])
    stage.programs.start(device, _AGENT, "run", *folders)


def _roll_out(fleet: FleetClient, ref: ModelRef) -> RolloutDetail:
    started = fleet.start_rollout(
        RolloutRequest(
            model=ref.name, version=ref.version, waves=(0.5, 1.0), trial_s=_TRIAL_S, gate=GateConfig(timeout_s=120)
        )
    )
    said: set[str] = set()
    detail = started
    for detail in follow(fleet, started, timeout_s=180):
        for text, style in story(detail):
            if text not in said:
                said.add(text)
                output.line(text, style)
    return detail


def _infer(stage: Stage, fleet: FleetClient) -> None:
    """Ask each device about labelled digits, and wait until the fleet has heard of them all."""
    import numpy as np

    with np.load(stage.evaluation) as digits:
        pictures, labels = digits["x"][:_INFERENCES], digits["y"][:_INFERENCES]
    samples, truth = stage.folder / "samples.npy", stage.folder / "truth.txt"
    np.save(samples, pictures)
    truth.write_text("".join(f"{label}\n" for label in labels))
    for device in _DEVICES:
        arguments = ("infer", _MODEL, str(samples), "--labels", str(truth), "--json", *stage.agent_folders(device)[2:])
        answers = [json.loads(line) for line in stage.programs.run(_AGENT, *arguments).splitlines()]
        right = sum(answer["correct"] for answer in answers)
        output.line(f"{device} answered {len(answers)} digits, {right} right")
    for device in _DEVICES:
        served = stage.wait("telemetry arrives", partial(_served, fleet, device, len(labels)))
        output.line(
            f"the fleet knows of {device}: {served.requests} requests, p50 {figures.latency(served.p50_us)}, "
            f"p99 {figures.latency(served.p99_us)}, accuracy {figures.accuracy(served.feedback)}, "
            f"power {figures.power(served.power)}{_why_unknown(served.power)}"
        )


def _served(fleet: FleetClient, device: DeviceId, requests: int) -> ServingSummary | None:
    model = served_model(fleet.device(device))
    served = model.served if model else None
    return served if served is not None and served.requests >= requests else None


def _why_unknown(power: Power | None) -> str:
    if power is None:
        return " (not reported)"
    return f" ({power.reason})" if power.power_mw is None else ""


def _all_serve(fleet: FleetClient, ref: ModelRef) -> bool | None:
    models = [served_model(fleet.device(device)) for device in _DEVICES]
    return all(model is not None and (model.name, model.version) == ref for model in models) or None
