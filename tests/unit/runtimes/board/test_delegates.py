"""External delegates in a race: one small C library that fails in each way, in both runtimes, and the table of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from accelerator import build_delegate
from quick_race import quicken_races
from regatta_protocol.errors import Rejected
from regatta_protocol.measurement import BoardFacts, Outcome, RaceReport
from regatta_protocol.values import Plugin
from regatta_runtimes.board.accelerators import ACCELERATORS
from regatta_runtimes.board.delegates import DELEGATES, DelegateFacts, find_plugin, read_delegates
from regatta_runtimes.board.probe import probe_board
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.race.enumerate import Entrant, enumerate_candidates
from regatta_runtimes.race.run import RaceSpec, RaceVariant, run_race
from regatta_runtimes.worker.quarantine import Quarantine
from tiny_models import unary_model, write_abs_golden

REPOSITORY = Path(__file__).resolve().parents[4]
RUNTIMES = ("litert", "tflite")
# mode of the library -> outcome, and what the reason says
FAILURES = {
    "nothing": (Outcome.NO_OP, "took no node"),
    "create": (Outcome.CREATE_FAILED, "no device"),
    "prepare": (Outcome.PREPARE_FAILED, "cannot be compiled"),
    "invoke": (Outcome.INVOKE_FAILED, "the device is gone"),
    "segfault": (Outcome.CRASHED, "SIGSEGV"),
    "abort": (Outcome.CRASHED, "assertion failed"),
    "segfault_late": (Outcome.CRASHED, "SIGSEGV"),
    "abort_late": (Outcome.CRASHED, "SIGABRT"),
    "leak": (Outcome.OUT_OF_MEMORY, "out of memory"),
    "wrong": (Outcome.WRONG_OUTPUT, "outputs are wrong"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test delegate, built."""
    built = build_delegate(tmp_path_factory.mktemp("delegate"))
    if built is None:
        pytest.skip("gcc is not installed, which builds the test delegate")
    return built


@pytest.fixture(autouse=True)
def _quick_races(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_races(monkeypatch)


def _race(
    folder: Path,
    library: Path,
    runtime: str,
    *modes: str,
    budget_s: float = 40.0,
    requires: tuple[str, ...] = (),
    threads: tuple[int, ...] = (1,),
    quarantine: Quarantine | None = None,
) -> RaceReport:
    """Return the report of a race of ABS, on the CPU (unless it requires a delegate) and by a delegate of each mode.

    `{mode}` in the library's name stands for the delegate's.
    """
    model, golden, table = folder / "abs.tflite", folder / "golden.npz", folder / "delegates.json"
    model.write_bytes(unary_model())
    write_abs_golden(golden, "float32")
    rows = {
        mode: {"what": "a test", "libraries": [str(library).format(mode=mode)], "options": {"mode": mode}}
        for mode in modes
    }
    table.write_text(json.dumps(rows))
    return run_race(
        RaceSpec(
            model="abs",
            version=1,
            variants=(RaceVariant(name="float32", path=str(model), requires=requires),),
            golden=str(golden),
            threads=threads,
            budget_s=budget_s,
            memory_bytes=256 << 20,
            runtimes=(runtime,),
            delegate_files=(str(table),),
            quarantine=quarantine or Quarantine(),
        )
    )


def _needs(report: RaceReport) -> None:
    """Skip when the runtime cannot be used here at all."""
    for result in report.candidates:
        if result.delegate == "none" and result.outcome == Outcome.UNAVAILABLE:
            pytest.skip(f"{result.reason}")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_failure_of_a_delegate_has_its_name_and_a_sound_candidate_wins(
    tmp_path: Path, library: Path, runtime: str
) -> None:
    """No-op, create, prepare, invoke, crashes early and late, a leak, wrong outputs: told apart in one race."""
    report = _race(tmp_path, library, runtime, "real", *FAILURES)
    _needs(report)

    results = {result.delegate: result for result in report.candidates}
    assert {mode: results[mode].outcome for mode in FAILURES} == {
        mode: outcome for mode, (outcome, _) in FAILURES.items()
    }
    for mode, (_, words) in FAILURES.items():
        assert words in (results[mode].reason or ""), mode
        assert results[mode].id == f"{runtime}/float32/{mode}/t1"
    assert results["real"].outcome in (Outcome.MEASURED, Outcome.DROPPED)
    assert results["real"].latency is not None
    placed = report.placed()
    assert placed is not None
    assert placed.delegate not in FAILURES


@pytest.mark.parametrize(("runtime", "mode"), [("litert", "hang"), ("tflite", "hang_late")])
def test_a_delegate_that_hangs_is_killed_and_the_cpu_is_placed(
    tmp_path: Path, library: Path, runtime: str, mode: str
) -> None:
    """While it is created, and in its first inference."""
    report = _race(tmp_path, library, runtime, mode, budget_s=6.0)  # half of it is what a hang costs
    _needs(report)

    results = {result.delegate: result for result in report.candidates}
    assert results[mode].outcome == Outcome.HUNG
    placed = report.placed()
    assert placed is not None
    assert placed.delegate in ("none", "xnnpack")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_delegate_that_leaks_slowly_is_not_placed(
    tmp_path: Path, library: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 KiB an inference is far from any limit during a race, and would end a board in a day."""
    monkeypatch.undo()  # a whole final: a leak takes rounds to show
    report = _race(tmp_path, library, runtime, "seep", requires=("seep",))
    _needs(report)

    (result,) = (one for one in report.candidates if one.runtime == runtime)
    assert result.outcome == Outcome.LEAKING
    assert "its memory grew all the time" in (result.reason or "")
    assert report.placement is None


def test_a_delegate_that_crashed_twice_is_left_alone_until_something_changes(tmp_path: Path, library: Path) -> None:
    """Two races strike it, the third does not touch it, and another library or another option is tried again."""
    first = _race(tmp_path, library, "litert", "segfault_late")
    (struck,) = (one for one in first.candidates if one.delegate == "segfault_late")
    assert struck.outcome == Outcome.CRASHED
    quarantine = Quarantine().after(first.candidates).after(first.candidates)

    third = _race(tmp_path, library, "litert", "segfault_late", "real", quarantine=quarantine)

    results = {one.delegate: one for one in third.candidates}
    assert results["segfault_late"].outcome == Outcome.QUARANTINED
    assert "SIGSEGV" in (results["segfault_late"].reason or "")
    assert results["real"].outcome in (Outcome.MEASURED, Outcome.DROPPED)  # other options: another pair
    assert quarantine.after(third.candidates) == quarantine
    changed = tmp_path / "libchanged.so"
    changed.write_bytes(library.read_bytes() + b"\0")
    fourth = _race(tmp_path, changed, "litert", "segfault_late", quarantine=quarantine)
    assert [one.outcome for one in fourth.candidates if one.delegate == "segfault_late"] == [Outcome.CRASHED]


def test_a_library_that_is_damaged_or_absent_is_told_by_its_path(tmp_path: Path, library: Path) -> None:
    """An empty file, a text, one without the two functions, none: a user's row is never passed over in silence."""
    (tmp_path / "libempty.so").write_text("")
    (tmp_path / "libtext.so").write_text("not a library")
    assert library  # there is a compiler
    (tmp_path / "bare.c").write_text("int regatta_nothing;\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "libbare.so", "bare.c"], cwd=tmp_path, check=True, timeout=60)
    names = ("empty", "text", "bare", "gone")

    report = _race(tmp_path, tmp_path / "lib{mode}.so", "litert", *names)

    results = {result.delegate: result for result in report.candidates}
    for name in names:
        outcome = Outcome.UNAVAILABLE if name == "gone" else Outcome.CREATE_FAILED
        assert (results[name].outcome, f"lib{name}.so" in (results[name].reason or "")) == (outcome, True), name
    assert f"{tmp_path}/libtext.so" in (results["text"].reason or "")
    assert "libgone.so was not found" in (results["gone"].reason or "")
    assert report.placement is not None


def test_a_row_is_read_from_toml_and_from_json_and_may_replace_one(tmp_path: Path) -> None:
    """The later file wins; the table that ships stays as it is."""
    (tmp_path / "a.toml").write_text('[mine]\nwhat = "mine"\nlibraries = ["libmine.so"]\n[vx]\nwhat = "another"\n')
    (tmp_path / "b.json").write_text('{"mine": {"what": "also mine", "options": {"cache": "1"}}}')

    rows = read_delegates([tmp_path / "a.toml", tmp_path / "b.json"])

    assert rows["mine"] == DelegateFacts(what="also mine", options={"cache": "1"})
    assert rows["vx"].what == "another"
    assert rows["edgetpu"] == DELEGATES["edgetpu"]
    assert "mine" not in DELEGATES


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "[mine", "cannot be read"),
        ("a.json", "[]", "no table of delegates"),
        ("a.json", "[" * 60_000, "cannot be read"),
        ("a.toml", '[mine]\nlibraries = ["x.so"]', "mine.what"),
        ("a.toml", '[mine]\nwhat = "x"\nlibrary = "x.so"', "mine.library"),
        ("a.toml", '["My NPU"]\nwhat = "x"', "My NPU"),
        ("a.toml", '[xnnpack]\nwhat = "x"', "another name"),
        ("gone.toml", None, "cannot be read"),
    ],
)
def test_a_wrong_delegate_file_says_what_is_wrong(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    """Broken, no table, a field missing, unknown or reserved, absent: the file and the place are named."""
    if text is not None:
        (tmp_path / name).write_text(text)

    with pytest.raises(Rejected, match=words) as caught:
        read_delegates([tmp_path / name])

    assert str(tmp_path / name) in str(caught.value)


def _entry_points(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Install a distribution that has the entry point `mine` of our group, whose module is `code`."""
    (folder / "their_delegates.py").write_text(code)
    metadata = folder / "their_delegates-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-delegates\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[regatta.delegates]\nmine = their_delegates:rows\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "their_delegates", raising=False)


@pytest.mark.parametrize(
    "code",
    [
        "rows = {'mine': {'what': 'mine', 'libraries': ['libmine.so']}}",
        "def rows():\n    return {'mine': {'what': 'mine', 'libraries': ('libmine.so',)}}",
        "from regatta_runtimes.board.delegates import DelegateFacts\n"
        "rows = {'mine': DelegateFacts(what='mine', libraries=('libmine.so',))}",
    ],
    ids=["table", "function", "objects"],
)
def test_an_installed_package_adds_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """By an entry point: a table of values or of rows, or a function that returns one."""
    _entry_points(monkeypatch, tmp_path, code)

    told: list[str] = []
    rows = read_delegates(root=tmp_path, tell=told.append)

    assert rows["mine"] == DelegateFacts(what="mine", libraries=("libmine.so",))
    assert told == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("import no_such_module_here", "no_such_module_here"),
        ("other = 1", "AttributeError"),
        ("rows = 7", "no table of delegates"),
        ("rows = {'mine': {}}", "mine.what"),
        ("rows = {'xnnpack': {'what': 'x'}}", "another name"),
        ("def rows(argument):\n    return {}", "TypeError"),
    ],
)
def test_a_broken_package_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    """Whatever its code does, the other rows are there."""
    _entry_points(monkeypatch, tmp_path, code)

    told: list[str] = []
    rows = read_delegates(root=tmp_path, tell=told.append)

    assert dict(rows) == dict(DELEGATES)
    assert len(told) == 1
    assert words in told[0] and "'mine' (their_delegates:rows)" in told[0]


def test_the_boards_folder_adds_rows_and_a_broken_file_there_is_told(tmp_path: Path) -> None:
    """/etc/regatta/delegates.d: every process of the board sees them; a caller's own file comes last."""
    folder = tmp_path / "etc/regatta/delegates.d"
    folder.mkdir(parents=True)
    (folder / "a.toml").write_text('[mine]\nwhat = "the folder\'s"\n[other]\nwhat = "other"')
    (folder / "b.toml").write_text("[broken")
    (folder / "README").write_text("not a table")
    (tmp_path / "own.toml").write_text('[mine]\nwhat = "the caller\'s"')

    told: list[str] = []
    rows = read_delegates([tmp_path / "own.toml"], tmp_path, told.append)

    assert (rows["mine"].what, rows["other"].what) == ("the caller's", "other")
    assert len(told) == 1
    assert str(folder / "b.toml") in told[0]


def test_a_users_delegate_brings_its_accelerator(tmp_path: Path) -> None:
    """Signs in the row: the board has the accelerator, and the delegate is offered for it."""
    folder = tmp_path / "etc/regatta/delegates.d"
    folder.mkdir(parents=True)
    (folder / "mynpu.toml").write_text(
        '[mynpu]\nwhat = "my NPU"\naccelerators = ["mynpu"]\nsigns.mynpu = { paths = ["dev/mynpu*"] }\n'
        'libraries = ["/opt/libmynpu.so"]\n'
    )
    for name in ("dev/mynpu0", "opt/libmynpu.so"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rows = read_delegates(root=tmp_path)

    board = probe_board(tmp_path, rows)

    assert board.accelerators == ("mynpu",)
    assert find_plugin("mynpu", board, rows, tmp_path) == Plugin(library=str(tmp_path / "opt/libmynpu.so"))


@pytest.mark.parametrize("field", ['signs.other = { paths = ["dev/x"] }', 'install_on = { other = "x" }'])
def test_signs_and_hints_are_of_the_rows_own_accelerators(tmp_path: Path, field: str) -> None:
    """A name that the row does not serve is a slip of the pen."""
    (tmp_path / "a.toml").write_text(f'[mine]\nwhat = "x"\naccelerators = ["mine"]\n{field}')

    with pytest.raises(Rejected, match="not among its accelerators"):
        read_delegates([tmp_path / "a.toml"])


def test_a_delegate_says_which_precisions_it_takes() -> None:
    """An Edge TPU no float; one that says nothing, and a variant of unknown precision, are worth a try."""
    edgetpu = DELEGATES["edgetpu"]

    assert [edgetpu.takes(one) for one in ("int8", "uint8", "float32", None)] == [True, True, False, True]
    assert DelegateFacts(what="x").takes("float32")


def test_every_row_that_ships_says_how_to_get_it() -> None:
    """And serves only accelerators that are known, so that none can be offered that is never found."""
    for name, facts in DELEGATES.items():
        assert set(facts.accelerators) <= set(ACCELERATORS), name
        assert facts.install != "install its library", name
        assert facts.hardware or not facts.accelerators, name


def test_every_accelerator_and_delegate_is_in_the_documentation() -> None:
    """docs/boards.md names each in its table, with the libraries."""
    page = (REPOSITORY / "docs/boards.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]

    for name in ACCELERATORS:
        assert any(line.startswith(f"| `{name}` |") for line in rows), name
    for name, facts in DELEGATES.items():
        named = [line for line in rows if f"| `{name}` |" in line]
        assert named or not (facts.accelerators or facts.libraries), name
        for library in facts.libraries:
            assert any(f"`{library}`" in line for line in named), library


def test_an_accelerator_with_its_library_races_in_both_runtimes(tmp_path: Path) -> None:
    """A Coral takes the variant compiled for it alone; an i.MX 8M Plus NPU tries any; the CPU's candidates go first."""
    folder = tmp_path / "usr/lib/aarch64-linux-gnu"
    folder.mkdir(parents=True)
    for name in ("libedgetpu.so.1", "libvx_delegate.so"):
        (folder / name).touch()
    board = BoardFacts(accelerators=("coral-usb", "imx8mp-npu"))

    candidates, absent = enumerate_candidates(
        [Entrant("int8"), Entrant("tpu", ("edgetpu",))],
        {"litert": None, "tflite": None},
        board,
        (1, 2),
        root=tmp_path,
    )

    assert absent == []
    assert candidates[8:] == [
        Candidate("litert", "int8", "vx", 1),
        Candidate("tflite", "int8", "vx", 1),
        Candidate("litert", "tpu", "edgetpu", 1),
        Candidate("tflite", "tpu", "edgetpu", 1),
    ]
    assert candidates[8].plugin == Plugin(library=str(folder / "libvx_delegate.so"))


def test_an_accelerator_without_its_library_is_explained(tmp_path: Path) -> None:
    """The board has the NPU, so the missing library is told."""
    why = find_plugin("vx", BoardFacts(accelerators=("imx8mp-npu",)), root=tmp_path)

    assert isinstance(why, str)
    assert why.startswith("imx8mp-npu is here, but libvx_delegate.so was not found: add libvx_delegate.so")
    assert "tensorflow-lite-vx-delegate" in why
