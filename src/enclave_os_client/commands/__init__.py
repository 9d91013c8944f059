"""The command line's own commands, one file a noun.

Each file has `add(commands)`, which describes its command to the parser and says which function runs it
(`set_defaults(run=...)`, called with the parsed arguments, returns the exit code). `cli.COMMANDS` lists them. What they
raise is turned into a line and an exit code in one place, `cli.main`.
"""
