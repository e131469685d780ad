"""Batch jobs: a model's answers to many records, in a file. They go on after a kill, with no record lost or doubled.

`job.py` is the way in; `journal.py` says how far a job is, `results.py` what lies in the files.
"""
