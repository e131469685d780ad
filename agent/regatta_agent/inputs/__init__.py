"""What applications ask about: records from files, folders, tables, arrays and standard input, one after another.

On the client's side: nothing here reads a whole input that may be large, nor makes a model's input of a picture or a
sound, which the worker does. `records.py` is the way in.
"""
