"""Which journal the settings ask for: a file in the home folder, or a Postgres database by URL."""

from __future__ import annotations

from orchestrator.controller.home import Home
from orchestrator.controller.journal.base import Journal
from orchestrator.controller.journal.sqlite import SqliteJournal
from orchestrator.controller.settings import Settings
from orchestrator.domain.errors import UsageError

POSTGRES_SCHEMES = ("postgresql://", "postgres://")


def open_journal(settings: Settings, home: Home) -> Journal:
    """The journal of `settings.journal`. Raises `UsageError` for a URL of another kind or a missing driver and
    `StorageError` when the journal cannot be opened."""
    url = settings.journal
    if not url:
        return SqliteJournal(home.journal_file)
    if not url.startswith(POSTGRES_SCHEMES):
        scheme = url.partition("://")[0] if "://" in url else "none"
        raise UsageError(
            f"settings.journal: its scheme is {scheme!r}, and only postgresql is known",
            hint="write postgresql://user@host/database, or leave it empty for SQLite in the home folder",
        )
    try:
        from orchestrator.controller.journal.postgres import PostgresJournal
    except ModuleNotFoundError as error:
        raise UsageError("the Postgres driver is not installed", hint="pip install 'orchestrate[postgres]'") from error
    return PostgresJournal(url)
