"""The shell around the pure core: observe, turn observations into events, let the lifecycle decide, journal, act."""
