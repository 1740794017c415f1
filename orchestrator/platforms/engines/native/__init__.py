"""The elastic engine: its coordinator here in the driver, an agent a node, workers as the agents' child processes."""
