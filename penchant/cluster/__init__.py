"""Encoding (`encoding.encode_with_ray`) and scoring (`scoring.score_with_ray`) by Ray Data; the extra `ray`.

Importing it raises InputError where Ray is not installed.
"""

import os

from penchant.errors import InputError

# Ray reads these when it is imported: it tells nobody about its use, its own notes stay in its log files, and that the
# actors end with a run is no news.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "killed by `ray.kill`")
try:
    import ray.data  # noqa: F401
except ImportError as error:
    raise InputError(f"the ray engine needs Ray ({error}); run: pip install 'penchant[ray]'") from error
