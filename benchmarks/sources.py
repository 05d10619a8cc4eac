"""The real data that rows work on: from the download stage's store, a mirror or the public address, hash verified."""

import os
from pathlib import Path

from benchmarks.harness import REPOSITORY
from scratchlm.data.catalogue import CATALOGUE
from scratchlm.data.sources import fetch


def source_file(source: str, name: str) -> Path:
    """A file of the catalogue. Raises DownloadError (SCRATCHLM_MIRROR names a mirror) if it cannot be had."""
    (file,) = (file for file in CATALOGUE[source].files if file.name == name)
    return fetch(CATALOGUE[source], file, REPOSITORY / ".scratchlm" / "downloads", os.environ.get("SCRATCHLM_MIRROR"))
