"""The metric catalogue, and what is exported of it. Knows no controller: whoever has one fills a `Snapshot`."""

from orchestrator.telemetry.renderer import render
from orchestrator.telemetry.samples import Amounts, JobSample, Snapshot, amounts_of

__all__ = ["Amounts", "JobSample", "Snapshot", "amounts_of", "render"]
