"""The tables. Migrations create them; a test holds both equal.

Conventions: times are seconds since 1970 (float, UTC); messages that are only shown again are kept as their JSON
text; names of devices and models are the protocol's ids.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
)

__all__ = [
    "assignments",
    "batch_jobs",
    "batches",
    "certificates",
    "device_models",
    "devices",
    "events",
    "metadata",
    "model_versions",
    "policies",
    "race_results",
    "races",
    "rollout_devices",
    "rollout_waves",
    "rollouts",
    "served",
    "tokens",
    "update_windows",
]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    }
)

_ID = String(64)

devices = Table(
    "devices",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("group_name", _ID, nullable=False),
    Column("enrolled_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("up", Boolean, nullable=False, default=False),
    Column("boot", String(128)),
    Column("agent_version", String(64)),
    Column("last_seen", Float),
    Column("board", Text),  # BoardFacts
    Column("desired_generation", BigInteger, nullable=False, default=0),
    Column("desired_at", Float, nullable=False, default=0.0),
    Column("reported_generation", BigInteger),
    Column("reported_sequence", BigInteger),
    Column("bytes_received", BigInteger, nullable=False, default=0),
    Column("dropped_items", BigInteger, nullable=False, default=0),
)

certificates = Table(
    "certificates",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("serial", String(64), primary_key=True),  # decimal
    Column("expires_at", Float, nullable=False),
)

device_models = Table(
    "device_models",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("name", _ID, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("serving", Boolean, nullable=False),
    Column("report", Text, nullable=False),  # ModelReport
    Column("updated_at", Float, nullable=False),
    Index(None, "name", "version"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("name", _ID, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("rollout", String(64)),
    Column("trial_s", Float, nullable=False),
    Column("ignore_window", Boolean, nullable=False, server_default=false()),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("name", _ID, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("manifest_digest", String(64), nullable=False),
    Column("manifest", Text, nullable=False),  # Manifest, the exact text that is signed
    Column("signed", Boolean, nullable=False),  # before that, nobody sees the version
)

tokens = Table(
    "tokens",
    metadata,
    Column("secret_hash", String(64), primary_key=True),  # SHA-256 of the secret, which is 256 random bits
    Column("device", _ID),
    Column("group_name", _ID, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
    Column("used_by", _ID),
    Column("key_digest", String(64)),  # of the public key that used it, so that the same device may ask again
    Column("certificate", Text),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", _ID, nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", Text),
    Column("gate", Text, nullable=False),  # GateConfig
    Column("targets", Text, nullable=False, server_default="[]"),  # RolloutRequest.to
    Column("trial_s", Float, nullable=False),
    Column("ignore_window", Boolean, nullable=False, server_default=false()),
    Column("created_at", Float, nullable=False, index=True),
    Column("finished_at", Float),
    ForeignKeyConstraint(["model", "version"], ["model_versions.name", "model_versions.version"]),
)

rollout_waves = Table(
    "rollout_waves",
    metadata,
    Column("rollout", ForeignKey("rollouts.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("reason", Text),
    Column("started_at", Float),
)

rollout_devices = Table(
    "rollout_devices",
    metadata,
    Column("rollout", ForeignKey("rollouts.id"), primary_key=True),
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("wave", Integer, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reason", Text),
    Column("accuracy", Float),
    Column("p99_us", Float),
    Column("previous_version", Integer),  # what the device goes back to; NULL: nothing
    Column("baseline_version", Integer),
    Column("baseline_accuracy", Float),
    Column("baseline_p99_us", Float),
    Column("baseline_source", String(16)),
    Column("opens_at", Float),  # the last update window that it waited for; NULL: none
    Column("waits", Boolean, nullable=False, server_default=false()),  # for that, as last reported
    Index(None, "device"),
)

batches = Table(
    "batches",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("received_at", Float, nullable=False, index=True),
)

served = Table(
    "served",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("model", _ID, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("placement", String(256), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("latency_counts", Text, nullable=False),  # JSON: bucket index -> count
    Column("stage_counts", Text),  # JSON: stage -> such counts
    Column("feedback_correct", BigInteger, nullable=False),
    Column("feedback_total", BigInteger, nullable=False),
    Column("power", Text),  # Power, of the newest window that had one
    Column("since", Float, nullable=False),
    Column("until", Float, nullable=False),
)

races = Table(
    "races",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("model", _ID, nullable=False),
    Column("version", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("report", Text, nullable=False),  # RaceReport
    Index(None, "device", "model"),
)

policies = Table(
    "policies",
    metadata,
    Column("group_name", _ID, primary_key=True),  # "all": every device
    Column("model", _ID, primary_key=True),  # "": every model
    Column("policy", Text, nullable=False),  # the fields of Policy that are set
    Column("updated_at", Float, nullable=False),
)

update_windows = Table(
    "update_windows",
    metadata,
    Column("group_name", _ID, primary_key=True),  # "all": every device
    Column("windows", Text, nullable=False),  # JSON: the windows as written (regatta_protocol.update_window)
    Column("updated_at", Float, nullable=False),
)

race_results = Table(
    "race_results",
    metadata,
    Column("key", String(64), primary_key=True),  # RaceReport.key
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("at", Float, nullable=False),  # by the device's clock
    Column("received_at", Float, nullable=False),
    Column("placement", String(256), nullable=False),
    Column("report", Text),  # RaceReport of a full race; NULL: the device confirmed another's
    Index(None, "device"),
)

batch_jobs = Table(
    "batch_jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("job", Text, nullable=False),  # BatchJob
    Column("created_at", Float, nullable=False),
    Column("generation", BigInteger, nullable=False),  # of the assignment that brought or withdrew it
    Column("withdrawn", Boolean, nullable=False),
    Column("state", String(64), nullable=False),  # BatchState
    Column("report", Text, nullable=False),  # BatchReport
    Column("results_state", String(64)),  # ResultsState; null: nobody asked for its output
    Column("results", Text),  # Pulled, of database/batch.py
    Column("updated_at", Float, nullable=False),
    Index(None, "device", "state"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False, index=True),
    Column("kind", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("device", _ID),
    Column("rollout", String(64)),
)
