"""Reads and checks a recipe: every error names the file, the line and the key, and what would be right.

Beyond the shape (`models`), a recipe's order is checked: it begins with take or search, has neither again, and ends
with evaluate where that is given.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from regatta_fleet.optimize.recipe.models import EvaluateStep, Recipe, SearchStep, TakeStep, step_models
from regatta_fleet.optimize.recipe.yamltext import Place, YamlText, read_yaml
from regatta_protocol.errors import Rejected

__all__ = ["RecipeFile", "example_recipe", "read_document", "read_recipe"]

_MAX_ERRORS = 5  # told at once
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with where it lies, which relative file names start from."""

    path: Path
    recipe: Recipe

    def beside(self, name: str) -> Path:
        """Return the path of a file that the recipe names."""
        return self.path.parent / name

    @property
    def hooks(self) -> Path | None:
        return None if self.recipe.hooks is None else self.beside(self.recipe.hooks)


def read_recipe(path: Path) -> RecipeFile:
    """Return the recipe in the file, checked.

    Raises:
        Rejected: when it is none, or names a file that is not there; the text names line and key.
        OSError: when it cannot be read.
    """
    text, recipe = read_document(path, Recipe, {"steps": step_models()})
    _check_order(text, recipe)
    file = RecipeFile(path, recipe)
    if file.hooks is not None and not file.hooks.is_file():
        raise Rejected(f"{text.where(('hooks',))}: there is no file {file.hooks}: hooks names one beside the recipe")
    return file


def read_document(path: Path, kind: type[M], tagged: dict[str, dict[str, type[BaseModel]]]) -> tuple[YamlText, M]:
    """Return the YAML document as a model.

    Args:
        tagged: by the key of a list whose items are told apart by a tag: the models by tag.

    Raises:
        Rejected: when it does not fit; the text names file, line and key.
    """
    text = read_yaml(path)
    if not isinstance(text.value, dict):
        raise Rejected(f"{text.where(())}: give keys with values, beginning with `{next(iter(kind.model_fields))}:`")
    try:
        return text, kind.model_validate(text.value)
    except ValidationError as err:
        errors = _causes(err)[:_MAX_ERRORS]
        found = [_words(text, error, kind, tagged) for error in errors]
        raise Rejected("; ".join(found)) from err


def example_recipe() -> str:
    """Return the recipe that ships with Regatta, as text."""
    return (Path(__file__).parents[2] / "examples" / "digits" / "recipe.yaml").read_text(encoding="utf-8")


def _causes(err: ValidationError) -> list[Any]:
    """Return the errors without those that follow from others: a list is too short when its items are wrong."""
    errors: list[Any] = list(err.errors(include_url=False))
    inside = [error["loc"] for error in errors]
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(loc != error["loc"] and loc[: len(error["loc"])] == error["loc"] for loc in inside)
    ]


def _words(
    text: YamlText, error: Any, kind: type[BaseModel], tagged: dict[str, dict[str, type[BaseModel]]]  # noqa: ANN401  # pydantic's ErrorDetails
) -> str:  # fmt: skip
    place, model = _place(text.value, error["loc"], kind, tagged)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    where = text.where(place)
    if error["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        return f"{where}: unknown key {key!r}{_meant(str(place[-1]), known)}: known are {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}: key {key!r} is missing"
    if error["type"] == "union_tag_invalid":
        given, known = str(error["ctx"]["tag"]), sorted(next(iter(tagged.values())))
        return f"{where}: {key}: there is no step {given!r}{_meant(given, known)}: known are {', '.join(known)}"
    if error["type"] == "union_tag_not_found":
        return f"{where}: {key}: every step begins with `step: NAME`"
    words = error["msg"].removeprefix("Value error, ")
    given = repr(error["input"]) if isinstance(error["input"], str | int | float | bool | None) else "what stands there"
    return f"{where}: {key}: {given[:80]}: {words[0].lower()}{words[1:]}"


def _place(
    value: object, loc: tuple[str | int, ...], model: type[BaseModel], tagged: dict[str, dict[str, type[BaseModel]]]
) -> tuple[Place, type[BaseModel]]:
    """Return where in the document pydantic's `loc` is (which has tags of unions in it), and the model around it."""
    place: list[str | int] = []
    models = next(iter(tagged.values()), {})
    for at, part in enumerate(loc):
        if isinstance(part, str) and part in models and place and isinstance(place[-1], int):
            model = models[part]
            continue
        inside = (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        )
        if inside:
            value = value[part]  # type: ignore[index]  # a list by numbers, a dict by names
        elif at < len(loc) - 1 or not isinstance(value, dict):
            break  # inside of a union of plain types
        place.append(part)
    return tuple(place), model


def _meant(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, 1)
    return f" (is {near[0]!r} meant?)" if near else ""


def _check_order(text: YamlText, recipe: Recipe) -> None:
    for at, step in enumerate(recipe.steps):
        where = text.where(("steps", at))
        begins = isinstance(step, TakeStep | SearchStep)
        if begins != (at == 0):
            words = "begins with take or search" if at == 0 else f"has {step.step} only as its first step"
            raise Rejected(f"{where}: steps[{at}]: {step.step}: a recipe {words}")
        if isinstance(step, EvaluateStep) and at != len(recipe.steps) - 1:
            raise Rejected(f"{where}: steps[{at}]: evaluate judges what all other steps made: put it last")
