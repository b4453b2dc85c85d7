"""Object storage: each file at s3://, gs:// or another fsspec URL has a path in a local cache and is used from there.

A setting that is a URL is replaced by its cache path. `fetch` downloads the file to it, and `files.atomic_path` uploads
complete files that are written to it. Nothing else imports fsspec.
"""

from pipeline.storage.local_copies import (
    OF_OUTPUTS,
    cache_bytes,
    fetch,
    fetch_many,
    fetched_version,
    pull,
    pull_file,
    put,
    release,
    remove,
)
from pipeline.storage.objects import (
    answers,
    check_bucket,
    first_bytes,
    folders_in,
    glob,
    is_folder,
    is_there,
    listing,
    sizes_of,
    version_of,
)
from pipeline.storage.urls import (
    URL,
    cache_folder,
    name_of,
    path_of,
    place_of,
    refuse_url,
    url_of,
    with_urls,
)

__all__ = [
    "OF_OUTPUTS",
    "URL",
    "answers",
    "cache_bytes",
    "cache_folder",
    "check_bucket",
    "fetch",
    "fetch_many",
    "fetched_version",
    "first_bytes",
    "folders_in",
    "glob",
    "is_folder",
    "is_there",
    "listing",
    "name_of",
    "path_of",
    "place_of",
    "pull",
    "pull_file",
    "put",
    "refuse_url",
    "release",
    "remove",
    "sizes_of",
    "url_of",
    "version_of",
    "with_urls",
]
