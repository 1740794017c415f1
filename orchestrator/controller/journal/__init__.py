"""The journal: jobs, their stories, ledgers and steps, durable before anything is acknowledged or started."""

from orchestrator.controller.journal.open import open_journal

__all__ = ["open_journal"]
