"""Ports to the outside (engines, prices, capacity) and one adapter a file, each with a fake that passes the same tests."""
