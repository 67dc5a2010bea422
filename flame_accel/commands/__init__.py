"""Everything beside training: one module per `python -m flame_accel COMMAND`.

A command module has a docstring whose first line is its help, `add_arguments(parser)` and
`run(arguments)`. Modules import what is heavy inside `run`, so that help and wrong arguments are
answered at once. One that takes the options of a run as they are sets a default of `run_options`,
where they then are; wrong arguments are among them.
"""
