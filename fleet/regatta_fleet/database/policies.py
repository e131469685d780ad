"""Policies per group: what is set, for whom. Which of them a device is assigned is core/policies.py's to say."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from regatta_fleet.core.policies import Rule
from regatta_fleet.database.tables import policies
from regatta_protocol.ids import ModelName
from regatta_protocol.policy import Policy

__all__ = ["delete_rule", "list_rules", "put_rule"]

_EVERY_MODEL = ""  # a primary key holds no NULL


def list_rules(tx: Connection) -> tuple[Rule, ...]:
    """Return every rule, by group and model."""
    rows = tx.execute(select(policies).order_by(policies.c.group_name, policies.c.model))
    return tuple(
        Rule(row.group_name, ModelName(row.model) if row.model else None, Policy.model_validate_json(row.policy))
        for row in rows
    )


def put_rule(tx: Connection, rule: Rule, now: float) -> None:
    """Store a rule in place of what was set for the same group and model. A limit of None is kept as one."""
    delete_rule(tx, rule.group, rule.model)
    tx.execute(
        insert(policies).values(
            group_name=rule.group,
            model=rule.model or _EVERY_MODEL,
            policy=rule.policy.model_dump_json(exclude_unset=True),
            updated_at=now,
        )
    )


def delete_rule(tx: Connection, group: str, model: ModelName | None) -> bool:
    """Take a rule away; return whether there was one."""
    return tx.execute(delete(policies).where(_is(group, model))).rowcount > 0


def _is(group: str, model: ModelName | None) -> ColumnElement[bool]:
    return (policies.c.group_name == group) & (policies.c.model == (model or _EVERY_MODEL))
