"""Addresses of files in a job: a path, `package://python_package/path/inside`, or another scheme."""

from __future__ import annotations

import re
from typing import NamedTuple

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PACKAGE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class PackageUri(NamedTuple):
    """A file or folder inside an installed Python package."""

    package: str
    path: str


def scheme_of(uri: str) -> str | None:
    """`s3` of `s3://bucket/key`, in lower case; None for a path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else None


def package_uri(uri: str) -> PackageUri | None:
    """The parts of a `package://` URI; None for anything else, including a malformed one."""
    if scheme_of(uri) != "package":
        return None
    package, _, path = uri[len("package://") :].partition("/")
    inside = path.split("/")
    if not _PACKAGE.fullmatch(package) or not path or ".." in inside or "" in inside[:-1]:
        return None
    return PackageUri(package, path)


def uri_fault(uri: str) -> tuple[str, str] | None:
    """What is wrong with the form of an address and what to do; None when nothing is."""
    if uri.startswith("package:") and package_uri(uri) is None:
        return f'"{uri}" is not an address inside a package', "write package://python_package/path/inside"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]", uri):
        scheme, _, rest = uri.partition(":/")
        return f'"{uri}" lacks a slash', f"write {scheme}://{rest}"
    return None
