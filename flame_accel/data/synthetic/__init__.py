"""Probes that are made on the fly: documents of tasks whose answers are the only targets.

`config.synthetic_tasks` declares the tasks and their options; each module here makes the documents
of one or two of them, and `documents` gives them indices.
"""
