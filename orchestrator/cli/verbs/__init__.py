"""One module a verb, with `add_arguments(parser)` and `run(args, context) -> exit code`; loaded when it is used."""
