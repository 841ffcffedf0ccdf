"""The command line, one file a command: `main(argv)`, and what it does in the first line of the docstring.

`energy_transformer_command.py`, beside the package, finds them.
"""
