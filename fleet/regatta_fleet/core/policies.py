"""Which policy a device is assigned: the bundle's, with what the fleet has set for its group laid over it. Pure.

A rule is for a group or for every device, and for a model or for every model. Only the fields that it sets count, so a
group's objective leaves the bundle's limits alone. Rules are laid over the bundle's policy from the general to the
particular: all devices, all devices and this model, the group, the group and this model; the last word wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regatta_protocol.ids import ModelName
from regatta_protocol.policy import Policy

__all__ = ["EVERYONE", "Rule", "applying", "resolve"]

EVERYONE = "all"


@dataclass(frozen=True)
class Rule:
    """What is set for a group (or EVERYONE) and a model (or None, every model): the fields of `policy` that are set."""

    group: str
    model: ModelName | None
    policy: Policy

    def applies_to(self, group: str, model: ModelName) -> bool:
        return self.group in (EVERYONE, group) and self.model in (None, model)


def applying(rules: Iterable[Rule], group: str, model: ModelName) -> tuple[Rule, ...]:
    """Return the rules for a device of the group and the model, the most particular last."""
    found = [rule for rule in rules if rule.applies_to(group, model)]
    return tuple(sorted(found, key=lambda rule: (rule.group != EVERYONE, rule.model is not None)))


def resolve(bundle: Policy, rules: Iterable[Rule]) -> Policy:
    """Return the bundle's policy with the rules, as `applying` orders them, laid over it."""
    values = bundle.model_dump()
    for rule in rules:
        values |= rule.policy.model_dump(exclude_unset=True)
    return Policy.model_validate(values)
