"""The commands: one module for each `flame-accel COMMAND` (`python -m flame_accel COMMAND`).

A command module has a docstring whose first line is its help, `add_arguments(parser)` and
`run(arguments)`. Heavy imports are inside `run`, so that help and wrong arguments are answered at
once. A command that takes the options of a run sets a default for `run_options`: the command line
then puts all arguments there that the command does not declare, wrong ones included.
"""
