"""A client of a served model, for threads (`Client`) and for asyncio (`AsyncClient`). numpy and the standard library.

    client = Client("/run/regatta-agent/digits.sock")
    outputs = client.infer("digits", image)            # name -> array
    best = client.classify("digits", image, top=3)     # the greatest scores with their labels
    found = client.process("cats", jpeg).document      # boxes, classes, …, as the model's manifest describes

A connection is kept, and swaps and deaths are survived: a worker that leaves or dies closes its connection, and the
client connects anew (the socket path is a symlink that points to the new worker by then) and asks again, for up to
`retry_s`, after full jitter. An inference changes nothing, so asking again is safe; feedback is counted once by its id.

Floating-point arrays are sent as FP32 real values, which every variant of a model takes; integer arrays are sent as
they are, in the placed file's own type.
"""

from regatta_agent.client.aio import AsyncClient
from regatta_agent.client.messages import Arrays, Item, Processed, Score, ServerBusy
from regatta_agent.client.sync import Client

__all__ = ["Arrays", "AsyncClient", "Client", "Item", "Processed", "Score", "ServerBusy"]
