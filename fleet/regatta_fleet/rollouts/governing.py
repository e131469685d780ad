"""Setting and clearing policies of groups: stored, told in the history, and carried to the devices that they touch.

A device is touched when it is assigned a version of a model that the rule is for. It then gets a new generation, whose
assignment carries the policy; the caller publishes it (controller.Controller.tell).
"""

from __future__ import annotations

from sqlalchemy import Connection

from regatta_fleet.core.policies import EVERYONE, Rule
from regatta_fleet.database import devices, models
from regatta_fleet.database.events import add_event
from regatta_fleet.database.policies import delete_rule, list_rules, put_rule
from regatta_fleet.errors import NotFound
from regatta_fleet.schemas import GroupPolicy
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.policy import Policy

__all__ = ["clear_policy", "describe_policies", "set_policy"]


def set_policy(tx: Connection, group: str, model: ModelName | None, policy: Policy, now: float) -> set[DeviceId]:
    """Set a group's policy; return the devices that shall run by another one now.

    Raises:
        NotFound: when no such model is in the registry.
        Rejected: when the policy sets nothing, or a field that there is none of.
    """
    if policy.model_extra:
        raise Rejected(f"a policy has no {', '.join(sorted(policy.model_extra))}: see `regatta policy set --help`")
    if not policy.model_fields_set:
        raise Rejected("the policy sets nothing: give at least one option, or clear it with `regatta policy clear`")
    if model is not None and models.latest_version(tx, model) == 0:
        raise NotFound(f"there is no model {model}: see `regatta model list`")
    rule = Rule(group, model, policy)
    put_rule(tx, rule, now)
    add_event(tx, now, "policy_set", f"{_whom(group, model)}: {policy.model_dump_json(exclude_unset=True)}")
    return _touch(tx, rule, now)


def clear_policy(tx: Connection, group: str, model: ModelName | None, now: float) -> set[DeviceId]:
    """Take a group's policy away; return the devices that shall run by another one now.

    Raises:
        NotFound: when nothing is set for that group and model.
    """
    if not delete_rule(tx, group, model):
        raise NotFound(f"no policy is set for {_whom(group, model)}: `regatta policy show` lists what is")
    add_event(tx, now, "policy_cleared", _whom(group, model))
    return _touch(tx, Rule(group, model, Policy()), now)


def describe_policies(tx: Connection) -> tuple[GroupPolicy, ...]:
    """Return every rule as the API shows it, with how many devices it touches."""
    return tuple(
        GroupPolicy(group=rule.group, model=rule.model, policy=rule.policy, devices=len(_touched(tx, rule)))
        for rule in list_rules(tx)
    )


def _touched(tx: Connection, rule: Rule) -> tuple[DeviceId, ...]:
    return devices.find_assigned(tx, group=None if rule.group == EVERYONE else rule.group, name=rule.model)


def _touch(tx: Connection, rule: Rule, now: float) -> set[DeviceId]:
    touched = set(_touched(tx, rule))
    for device in touched:
        devices.bump_generation(tx, device, now)
    return touched


def _whom(group: str, model: ModelName | None) -> str:
    devices_text = "all devices" if group == EVERYONE else f"group {group}"
    return f"{devices_text}, {'every model' if model is None else f'model {model}'}"
