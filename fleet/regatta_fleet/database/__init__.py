"""What the fleet knows, in a database: tables, migrations and store functions over one connection.

Open with `engine.open_database`; read and change inside `database.read()` and `database.write()`. Each store module
(devices, models, rollouts, telemetry, tokens, events) holds functions whose first argument is such a connection, so
that a change over several of them is one transaction. SQLite is the default; nothing in the stores knows it.
"""
