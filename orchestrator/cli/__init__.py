"""The command line: one file a verb under `verbs/`; each parses its arguments, calls what stands below, and prints."""
