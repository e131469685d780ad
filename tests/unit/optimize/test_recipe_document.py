"""A recipe that is wrong is refused with the file, the line and the key, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from regatta_fleet.optimize.recipe.document import example_recipe, read_recipe
from regatta_fleet.optimize.recipe.models import PruneStep, QuantizeStep, TakeStep, recipe_schema
from regatta_protocol.errors import Rejected

_HEAD = "recipe: 1\nsteps:\n  - step: take\n"


def _write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def test_quantities_are_read_as_people_write_them(tmp_path: Path) -> None:
    text = "limits: {time: 2m, memory: 1GiB}\n" + _HEAD + "  - step: prune\n    shares: [50%, .25]\n"

    recipe = read_recipe(_write(tmp_path, text)).recipe

    assert recipe.limits.time == 120 and recipe.limits.memory == 1 << 30
    assert recipe.steps == (TakeStep(), PruneStep(shares=(0.5, 0.25)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", r"r\.yaml, line 1: give keys"),
        ("recipe: 2\nsteps: [{step: take}]\n", r"line 1: recipe: 2"),
        ("recipe: 1\n", r"key 'steps' is missing"),
        (_HEAD + "  - step: prun\n", r"line 4: steps\[1\]: there is no step 'prun' \(is 'prune' meant\?\): known are"),
        (_HEAD + "  - shares: [1]\n", r"line 4: steps\[1\]: every step begins with `step: NAME`"),
        (_HEAD + "  - step: prune\n    sharse: [0.5]\n", r"line 5: unknown key .*sharse' \(is 'shares' meant\?\)"),
        (_HEAD + "  - step: prune\n    shares: [0.5, 150%]\n", r"line 5: steps\[1\]\.shares\[1\]: '150%': .*whole"),
        (_HEAD + "  - step: quantize\n    schemes: [int3]\n", r"line 5: steps\[1\]\.schemes\[0\]: 'int3'"),
        (_HEAD + "  - step: take\n", r"line 4: steps\[1\]: take: a recipe has take only as its first step"),
        ("recipe: 1\nsteps:\n  - step: quantize\n", r"line 3: .* begins with take or search"),
        (_HEAD + "  - step: evaluate\n  - step: mix\n", r"line 4: .*put it last"),
        ("recipe: 1\nhooks: no.py\nsteps:\n  - step: take\n", r"line 2: there is no file .*no\.py"),
        ("recipe: 1\nrecipe: 1\nsteps: []\n", r"line 2: key 'recipe' is given twice"),
        ("a: &x [1]\nb: *x\n", r"line 2: aliases"),
        ("a: !!python/object:os.system {}\n", r"line 1: aliases .* and tags"),
        ("recipe: [1\n", r"line 2: no YAML"),
        ("1: 2\n", r"line 1: a key must be plain text"),
        ("a: " + "[" * 5000, r"r\.yaml"),
        ("a: " + "[" * 40 + "]" * 40, r"nested deeper than 32"),
        ("recipe: 1\nsteps:\n  - {step: take}\n  - step: compile\n", r"line 4: key 'steps\[1\]\.for' is missing"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(Rejected, match=wanted):
        read_recipe(_write(tmp_path, text))


def test_the_example_is_right_and_the_schema_knows_every_step(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text("")

    recipe = read_recipe(_write(tmp_path, example_recipe())).recipe

    assert any(isinstance(step, QuantizeStep) for step in recipe.steps)
    steps = recipe_schema()["properties"]["steps"]["items"]["discriminator"]["mapping"]
    assert set(steps) == {
        "take",
        "search",
        "prune",
        "distill",
        "sparsify",
        "quantize",
        "qat",
        "mix",
        "compile",
        "evaluate",
    }
