"""What this machine is, what is known to go wrong on it, and whether a model trains here.

`machine` collects facts, `problems` is the table of what is known about them: neither imports
transformers or fla, so that they can speak where those do not import. `fitness` asks both about one
model, `parts` says what it is made of, `numerics` tries it out. Laws of models live in
`diagnosis/conformance/laws.py`, what a finding looks like on the screen in `commands/doctor.py`.
"""
