"""The command line: one module per command, started by `speechclip-plus`.

It is a package of its own so that `--help` and wrong usage answer before `speechclip_plus` imports PyTorch.
Commands may import everything; nothing imports them.
"""
