"""Engines run a gang of workers once. `base` is the port; every adapter passes the same contract tests."""
