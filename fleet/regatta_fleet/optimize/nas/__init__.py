"""Architecture search: one description of the space, four strategies at equal budgets, latency from a table.

`space` and `layers` are the description, `latency` the table, `evolution`, `reinforce`, `darts` and `random_search` the
strategies, `search` runs one of them (in a child process, with PyTorch), `run` is the front, `contest` compares them.
"""
