"""The shape of a recipe, version 1: one model for each step, and the JSON schema that they make. Pure.

Unlike what crosses the wire, a recipe is configuration: an unknown key is an error. Every step has the key `step`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from regatta_fleet.optimize.quantize.schemes import Scheme
from regatta_protocol.errors import Rejected
from regatta_protocol.quantity import parse_duration, parse_latency_us, parse_share, parse_size_bytes

__all__ = [
    "Accelerator",
    "CompileStep",
    "DistillStep",
    "EvaluateStep",
    "Limits",
    "MixStep",
    "PruneStep",
    "QatStep",
    "QuantizeStep",
    "Recipe",
    "RecipeStep",
    "SearchStep",
    "SparsifyStep",
    "Strategy",
    "TakeStep",
    "recipe_schema",
    "step_models",
]

MAX_STEPS = 32
Accelerator = Literal["edgetpu", "vela", "tidl"]
Strategy = Literal["evolution", "reinforce", "darts", "darts2", "random"]


def _written(parse: Callable[[str], float]) -> BeforeValidator:
    """Read text as people write quantities; numbers stay."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except Rejected as err:
            raise ValueError(str(err)) from err

    return BeforeValidator(read)


def _schema(example: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}], "examples": [example]})


Duration = Annotated[float, _written(parse_duration), Field(gt=0, le=86_400), _schema("10m")]
Share = Annotated[float, _written(parse_share), Field(ge=0, le=1), _schema("25%")]
Memory = Annotated[int, _written(parse_size_bytes), Field(ge=1 << 28, le=1 << 40), _schema("8GiB")]
Latency = Annotated[float, _written(parse_latency_us), Field(gt=0), _schema("50us")]
FileName = Annotated[str, Field(min_length=1, max_length=1024)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TakeStep(_Part):
    """Take a trained model: the one of the command line, a file beside the recipe, or what the hooks make."""

    step: Literal["take"] = "take"
    source: FileName | None = Field(
        default=None,
        description="A .tflite, .onnx, .keras, .h5 or SavedModel beside the recipe, MODULE:FACTORY of a PyTorch "
        "module, or `hooks`; left out: the MODEL of the command line, or else the hooks.",
    )
    layout: Literal["as-is", "channels-last"] = Field(
        default="as-is", description="channels-last: the inputs of a PyTorch or ONNX model become [n, h, w, c]."
    )
    signature: str | None = Field(default=None, max_length=256, description="Of a SavedModel that has several.")


class SearchStep(_Part):
    """Search for an architecture in place of taking a model; needs the [train] extra."""

    step: Literal["search"] = "search"
    space: FileName | Literal["small"] = Field(default="small", description="A search space, YAML, or `small`.")
    strategy: Strategy = "evolution"
    budget: int = Field(default=2000, ge=10, le=100_000_000, description="Training steps that the search may take.")
    candidate_steps: int = Field(default=40, ge=1, le=1_000_000, description="Training steps of each candidate.")
    final_steps: int = Field(default=400, ge=1, le=100_000_000, description="Training steps of the best one.")
    seeds: int = Field(
        default=1, ge=1, le=32, description="Above 1, so many searches, and random search at the same budgets beside."
    )
    latency_target: Latency | None = Field(default=None, description="Slower architectures are marked down.")
    latency_table: FileName | None = Field(
        default=None, description="A table that `regatta model search --latency-from` wrote [default: this machine's]."
    )


class PruneStep(_Part):
    """Take filters out and refit what consumes them: the first share that keeps the accuracy on samples held back."""

    step: Literal["prune"] = "prune"
    shares: tuple[Share, ...] = Field(
        default=(0.75, 0.625, 0.5, 0.375, 0.25, 0.125),
        min_length=1,
        max_length=64,
        description="Shares of the filters, tried in this order.",
    )


class DistillStep(_Part):
    """Prune by multiply-accumulates and train the rest on the original's answers; needs the [train] extra."""

    step: Literal["distill"] = "distill"
    shares: tuple[Share, ...] = Field(
        default=(0.75, 0.625, 0.5, 0.375, 0.25),
        min_length=1,
        max_length=64,
        description="Shares of the multiply-accumulates, tried in this order.",
    )


class SparsifyStep(_Part):
    """Train with ever more weights at 0, for fewer bytes where files are compressed; needs the [train] extra."""

    step: Literal["sparsify"] = "sparsify"
    shares: tuple[Share, ...] = Field(
        default=(0.9, 0.8, 0.7, 0.5), min_length=1, max_length=64, description="Shares of the weights, tried in turn."
    )


class QatStep(_Part):
    """Train the model for a precision; needs the [train] extra."""

    step: Literal["qat"] = "qat"
    precision: Literal["int8", "int4-weights"] = "int8"


class QuantizeStep(_Part):
    """Quantize the whole model in one way or several; each becomes a variant."""

    step: Literal["quantize"] = "quantize"
    schemes: tuple[Scheme, ...] = Field(default=("int8",), min_length=1, max_length=16)


class MixStep(_Part):
    """Find a precision for each layer: the fewest bytes within the accuracy budget."""

    step: Literal["mix"] = "mix"


class CompileStep(_Part):
    """Compile an int8 variant for an accelerator, with the compiler that you have installed."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    step: Literal["compile"] = "compile"
    accelerator: Accelerator = Field(alias="for")
    variant: str = Field(default="int8", max_length=64, description="Which variant to compile.")
    command: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="In place of the usual one: program and arguments, with {model} and {output}.",
    )
    delegate: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="The delegate that runs it on the device [default: the accelerator's].",
    )


class EvaluateStep(_Part):
    """Judge every variant beside float32. Always done at the end; the step only says how."""

    step: Literal["evaluate"] = "evaluate"
    max_accuracy_drop: Share | None = Field(default=None, description="In place of --accuracy-drop.")


RecipeStep = (
    TakeStep
    | SearchStep
    | PruneStep
    | DistillStep
    | SparsifyStep
    | QuantizeStep
    | QatStep
    | MixStep
    | CompileStep
    | EvaluateStep
)


class Limits(_Part):
    """What one step, or one call of a hook, may take."""

    time: Duration = 600.0
    memory: Memory = 8 * 1024**3


class Recipe(_Part):
    """A recipe of `regatta model optimize --recipe`."""

    recipe: Literal[1] = Field(description="The version of the recipe's format.")
    seed: int = Field(default=0, ge=0, lt=2**31)
    hooks: FileName | None = Field(default=None, description="A Python file beside the recipe.")
    limits: Limits = Limits()
    steps: tuple[Annotated[RecipeStep, Field(discriminator="step")], ...] = Field(min_length=1, max_length=MAX_STEPS)

    @property
    def max_accuracy_drop(self) -> float | None:
        """What the evaluate step asks for, or None where it does not."""
        return next((step.max_accuracy_drop for step in self.steps if isinstance(step, EvaluateStep)), None)


def step_models() -> dict[str, type[BaseModel]]:
    """Return the model of each step by the step's name."""
    kinds: tuple[type[BaseModel], ...] = RecipeStep.__args__
    return {str(kind.model_fields["step"].default): kind for kind in kinds}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors and for the docs."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
