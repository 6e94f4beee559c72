"""Which names a pattern is found in, where the pattern may come from anywhere.

Python's `re` tries every way to match: a dozen characters with repeats inside each other keep it busy for years, and
nothing can interrupt it portably. So what could do that is searched for in a process of its own, which is ended when it
takes too long. Needs only the standard library.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 10.0
MOST = 100_000  # characters of a pattern
# Without a repeat and without a group there is one way to match at each place.
_MAY_BRANCH = frozenset("*+?{(")
_PROGRAM = """
import json, re, sys
pattern, names = json.load(sys.stdin)
try:
    found = re.compile(pattern)
except (re.error, OverflowError, RecursionError, ValueError) as error:
    json.dump(str(error) or type(error).__name__, sys.stdout)
else:
    json.dump([bool(found.search(name)) for name in names], sys.stdout)
"""


class BadPattern(ValueError):
    """No regular expression, or one that takes too long: says which."""


def found_in(pattern: str, names: Sequence[str]) -> list[bool]:
    """For each name whether the regular expression is found in it. Raises BadPattern."""
    if len(pattern) > MOST:
        raise BadPattern(f"it has more than {MOST} characters")
    if not _MAY_BRANCH & set(pattern):
        try:
            return [bool(re.search(pattern, name)) for name in names]
        except re.error as error:
            raise BadPattern(str(error)) from None
    # -I and -S: nothing of the user's environment or folder is imported.
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([pattern, list(names)]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise BadPattern(f"to search for it takes longer than {SECONDS:g} seconds") from None
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise BadPattern(f"it could not be searched for ({error})") from None
    if isinstance(answer, str):
        raise BadPattern(answer)
    return [bool(each) for each in answer]
