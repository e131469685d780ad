"""`regatta-agent race`: the table, the documents, the pictures, its exit status, and what it refuses beforehand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from quick_race import quicken_races
from regatta_agent.cli import main
from tiny_models import dense_model

pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")


@pytest.fixture(autouse=True)
def _quick_races(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_races(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny Model.tflite"
    path.write_bytes(dense_model(np.eye(4, dtype=np.float32), np.zeros(4, dtype=np.float32)))
    y = np.arange(40) % 4
    np.savez(tmp_path / "evaluation.npz", x=np.eye(4, dtype=np.float32)[y], y=y)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_race_leaves_a_document_and_a_picture(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json and --output say the same; the SVG is one, with the placement and the accuracy in it.

    What is a link (as /dev/stdout is) is written to: a rename would put a file in its place.
    """
    folder = model.parent
    link = folder / "link.json"
    link.symlink_to("race.json")
    arguments = ("--budget", "3", "--threads", "1", "--evaluation", folder / "evaluation.npz")

    status, out, err = run(capsys, "race", model, *arguments, "--json", "--output", link, "--plot", folder / "race.svg")

    assert status == 0, err
    assert link.is_symlink()
    document = json.loads(out)
    assert json.loads((folder / "race.json").read_text()) == document
    assert document["placement"].startswith("litert/tiny-model/") or document["placement"].startswith("tflite/")
    placed = document["candidates"][0]
    assert placed["id"] == document["placement"]
    assert 0 < placed["p50_us"] <= placed["p99_us"]
    assert all(one["p50_us"] or one["reason"] for one in document["candidates"])
    assert document["policy"]["objective"] == "latency_p50"
    assert "candidates," in err  # progress, a line each where it is no terminal
    picture = (folder / "race.svg").read_text()
    assert "<svg" in picture
    assert "Accuracy against latency" in picture


def test_a_policy_that_nobody_meets_ends_with_65_and_still_tells_all(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table and the picture are made; the limit stands in the explanation."""
    plot = model.with_suffix(".png")

    status, out, err = run(
        capsys, "race", model, "--budget", "2", "--threads", "1", "--max-p99", "0.001us", "--plot", plot
    )

    assert status == 65
    assert "nothing was placed" in err
    assert "p99 at most 0.001 us" in out
    assert "over the policy's 0.001 us" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "race.gif"), "must end in .svg or .png"),
        (("--plot", "no/folder/race.png"), "there is no folder"),
        (("--output", "no/folder/race.json"), "there is no folder"),
        (("--output", "/tmp"), "is a folder"),
        (("--max-p99", "5"), "500us, 5ms"),
        (("--max-memory", "12"), "64MiB"),
        (("--accuracy-drop", "5"), "5%"),
        (("--objective", "beauty"), "latency-p50"),
        (("--power-command", "'open quote"), "no program with arguments"),
        (("--power-command", ""), "no program with arguments"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_race(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    """Wrong usage, with what is right; nothing was raced."""
    status, out, err = run(capsys, "race", model, *arguments)

    assert status == 2
    assert words in err
    assert "litert/" not in out + err


def test_a_delegate_and_a_meter_can_be_given_for_this_race_alone(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They go beside, and in place of, what agent.toml names; what is missing of them is told with its name."""
    config, mine, theirs = (model.with_name(name) for name in ("agent.toml", "mine.toml", "theirs.toml"))
    for path in (mine, theirs):
        path.write_text(f'[{path.stem}]\nwhat = "an NPU"\nlibraries = ["/no/lib{path.stem}.so"]\n')
    config.write_text(f'delegate_files = ["{theirs}"]\n[power]\nsensor = "rapl:package-0"\n')
    meter = ("--power-command", "echo 5", "--power-period", "9")

    status, out, err = run(
        capsys, "race", model, "--budget", "2", "--threads", "1", "--config", config, "--delegates", mine, *meter,
        "--json",
    )  # fmt: skip

    assert status == 0, err
    candidates = json.loads(out)["candidates"]
    assert {one["reason"] for one in candidates if one["outcome"] == "unavailable"} >= {
        f"it requires an NPU, but /no/lib{name}.so was not found: install its library" for name in ("mine", "theirs")
    }
    assert "sensor command:echo is renewed every 9 s" in candidates[0]["power"]["reason"]


def test_a_plot_without_matplotlib_names_the_extra(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the race, and with the command that installs it."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "matplotlib")

    status, _, err = run(capsys, "race", model, "--plot", model.with_suffix(".svg"))

    assert status == 78
    assert "pip install 'regatta-edge[plot]'" in err
