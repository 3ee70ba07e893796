"""Exit statuses, and the one place where exceptions become lines and statuses."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from cifar_dist.errors import DivergedError, UserError
from cifar_dist.record.checkpoint import BrokenCheckpointError
from cifar_dist.runtime import collectives, launch

FINISHED, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 75


def guarded(command: Callable[[], int], after_a_failure: str = "") -> int:
    """Run `command` and return its status; errors become one line, on rank 0 only, unless they are bugs."""
    try:
        return command()
    except UserError as error:
        return _leave(WRONG_INPUT, f"error: {error}")
    except DivergedError as error:
        return _leave(FAILED, f"failed: {error}; try a lower --lr, a longer --warmup or --max-grad-norm 1")
    except (BrokenCheckpointError, OSError) as error:
        return _leave(FAILED, f"failed: {error}" + f"; {after_a_failure}" * bool(after_a_failure))
    except KeyboardInterrupt:
        return _leave(FAILED, "interrupted before there was anything to save")
    except Exception:
        sys.stderr.write(f"[rank {launch.env_int('RANK', 0)}] {traceback.format_exc()}")
        return FAILED
    finally:
        with suppress(Exception):  # after a failure the group may be broken, and leaving matters more
            collectives.stop()


def finish(status: int) -> NoReturn:
    """End the process with this status.

    Where there are several, at once: everything is written by now, and a library that unloads its threads in an unlucky
    order aborts a process now and then (2 of about 90 launches), which the launcher then reports as a failed run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if launch.env_int("WORLD_SIZE", 1) > 1:
        os._exit(status)
    sys.exit(status)


def _leave(status: int, message: str) -> int:
    if collectives.is_speaker():
        print(" ".join(message.split()), file=sys.stderr, flush=True)
    return status
