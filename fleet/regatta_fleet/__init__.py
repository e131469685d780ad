"""The fleet server and its command line: optimize, sign, store, roll out in waves, gate by what devices measured."""
