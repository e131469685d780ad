"""Recipes: a YAML document that chains the optimizer's steps, with what is done already taken from a cache.

`document` reads one, `models` is its shape, `steps` says what each step does, `chain` runs them, `run` is the whole
story. A new step is a model in `models`, and a row in `steps.STEPS`.
"""
