"""A Hub for tests: what huggingface_hub, timm and `hf` ask of huggingface.co, answered on 127.0.0.1
by the standard library alone.

`store` holds repositories with real commits, `routes` answers the API, `faults` makes answers go
wrong, `hub` runs it all in a thread.
"""

from .faults import Fault
from .hub import TestHub
from .store import File, Repository, Store, git_blob_sha1

__all__ = ["Fault", "File", "Repository", "Store", "TestHub", "git_blob_sha1"]
