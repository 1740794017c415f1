"""Tests, by behaviour. A package, so that suites import their own parts by full name: `tests.controller.world`."""
