"""What to ask ai-edge-quantizer for: its recipe for each scheme, and for a plan layer by layer.

Only in the optimizer's child process. Later entries of a recipe win where several match; an entry that the quantizer
cannot apply to an operator is passed over, so int4 entries leave depthwise layers with the int8 entry before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

from regatta_fleet.optimize.quantize.layers import Layer
from regatta_fleet.optimize.quantize.schemes import LayerPrecision, Scheme

__all__ = ["Recipe", "mixed_recipe", "only_layer_recipe", "rounded_int4_recipe", "scheme_recipe"]

Recipe = list[dict[str, Any]]  # ai_edge_quantizer.qtyping.ModelQuantizationRecipe

_Algorithm = algorithm_manager.AlgorithmName
_Operation = qtyping.TFLOperationName
_EVERYTHING = ".*"
_INT4_KINDS = (_Operation.CONV_2D, _Operation.FULLY_CONNECTED)
_ACTIVATION_BITS = 8


def scheme_recipe(scheme: Scheme, stem: Sequence[Layer] = ()) -> Recipe:
    """Return the recipe of a scheme; `stem` are the layers that int8-float-stem leaves in float."""
    if scheme == "int8-float-stem":
        return mixed_recipe(dict.fromkeys(stem, "float32"))
    manager = recipe_manager.RecipeManager()
    if scheme in ("int8", "int8-unfolded"):
        manager.add_static_config(_EVERYTHING, _Operation.ALL_SUPPORTED, _ACTIVATION_BITS, 8)
    elif scheme == "int8-dynamic":
        manager.add_dynamic_config(_EVERYTHING, _Operation.ALL_SUPPORTED, 8)
    elif scheme == "float16":
        weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=weights,
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        manager.add_quantization_config(_EVERYTHING, _Operation.ALL_SUPPORTED, config, _Algorithm.FLOAT_CASTING)
    else:
        manager.add_weight_only_config(_EVERYTHING, _Operation.ALL_SUPPORTED, 8)
        if scheme == "int4-weights":
            for kind in _INT4_KINDS:
                manager.add_weight_only_config(_EVERYTHING, kind, 4, algorithm_key=_Algorithm.MSE)
    return _entries(manager)


def rounded_int4_recipe() -> Recipe:
    """Return the recipe of int4 weights that lie on their levels already, so that the greatest gives the scale."""
    manager = recipe_manager.RecipeManager()
    manager.add_weight_only_config(_EVERYTHING, _Operation.ALL_SUPPORTED, 8)
    for kind in _INT4_KINDS:
        manager.add_weight_only_config(_EVERYTHING, kind, 4)
    return _entries(manager)


def mixed_recipe(plan: Mapping[Layer, LayerPrecision]) -> Recipe:
    """Return the recipe of static int8 everywhere, but for the layers that are to be int4 or float32."""
    manager = recipe_manager.RecipeManager()
    manager.add_static_config(_EVERYTHING, _Operation.ALL_SUPPORTED, _ACTIVATION_BITS, 8)
    for layer, precision in plan.items():
        if precision != "int8":
            _add(manager, layer, precision)
    return _entries(manager)


def only_layer_recipe(layer: Layer, precision: LayerPrecision) -> Recipe:
    """Return the recipe that quantizes one layer and leaves all else in float."""
    manager = recipe_manager.RecipeManager()
    _add(manager, layer, precision)
    return _entries(manager)


def _add(manager: Any, layer: Layer, precision: LayerPrecision) -> None:  # noqa: ANN401  # RecipeManager is untyped
    scope, kind = f"^{re.escape(layer.name)};$", _Operation(layer.kind)
    if precision == "float32":
        manager.add_quantization_config(scope, kind, algorithm_key=_Algorithm.NO_QUANTIZE)
    elif precision == "int4":
        manager.add_static_config(scope, kind, _ACTIVATION_BITS, 4, algorithm_key=_Algorithm.MSE)
    else:
        manager.add_static_config(scope, kind, _ACTIVATION_BITS, 8)


def _entries(manager: Any) -> Recipe:  # noqa: ANN401  # as above
    entries: Recipe = manager.get_quantization_recipe()
    return entries
