"""A Ray for the tests of one module, started by the code that starts it for users, and gone after it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller import ray_processes
from orchestrator.controller.home import Home

NAMESPACE = "orchestrate"


@contextlib.contextmanager
def local_ray(folder: Path, cpus: int) -> Iterator[Home]:
    """Start a Ray whose home is `folder`, connect to it, and end both."""
    home = Home(folder)
    home.prepare()
    process, temporary = ray_processes.begin_start(home, cpus, os.environ)
    with pytest.MonkeyPatch.context() as patch:
        try:
            instance = ray_processes.finish_start(process, temporary)
            for name, value in ray_processes.connection(home).items():
                patch.setenv(name, value)
            import ray

            settings: Any = importlib.import_module("ray._raylet")
            # Another test may have imported ray, or joined another Ray, before: it reads these variables once.
            settings.AuthenticationTokenLoader.instance().reset_cache()
            settings.Config.initialize("")
            # What RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 says, which ray reads once and may have read already.
            patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
            ray.init(address=instance.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            try:
                yield home
            finally:
                ray.shutdown()
        finally:
            ray_processes.end_all(home)
