"""The commands of `framekd`: one module each, with `add(commands)` for its arguments and a function that runs it.

Modules import torch, and what else is slow, inside functions, so that `framekd --help` answers at once.
"""
