"""Exit statuses, and the one place where exceptions become lines and statuses."""

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import torch

from cifar_dist.errors import DivergedError, UserError
from cifar_dist.installed import NOTHING_TO_SAVE
from cifar_dist.record.checkpoint import BrokenCheckpointError
from cifar_dist.runtime import collectives, launch
from cifar_dist.text import printable, shortened

OUT_OF_MEMORY = "out of memory"
FINISHED, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 75
PATIENCE_S = 60.0  # with a process that speaks for the others, and may still be importing torch


def guarded(
    command: Callable[[], int], after_a_failure: str = "", told_to_end: Callable[[], Any] = lambda: False
) -> int:
    """Run `command` and return its status; errors become one line, from one process only, unless they are bugs.

    `told_to_end` says whether SIGTERM came, for a command that lives through it.
    """
    status, line = _outcome(command, after_a_failure)
    # A process may be alone without memory, and keeps the others waiting.
    patience_s = 3.0 if OUT_OF_MEMORY in line else PATIENCE_S
    speaks, hears = collectives.is_speaker(), collectives.hears_speaker()
    if line and speaks:
        print(line, file=sys.stderr, flush=True)
    with suppress(Exception):  # after a failure the group may be broken, and leaving matters more
        collectives.stop()
    if line and not speaks and hears and _outlasted(told_to_end, patience_s):
        print(line, file=sys.stderr, flush=True)
    return status


def _outcome(command: Callable[[], int], after_a_failure: str) -> tuple[int, str]:
    """Return the status of `command`, and the line that says what went wrong."""
    try:
        return command(), ""
    except UserError as error:
        status, message = WRONG_INPUT, f"error: {error}"
    except DivergedError as error:
        status, message = FAILED, f"failed: {error}; try a lower --lr, a longer --warmup or --max-grad-norm 1"
    except (BrokenCheckpointError, OSError) as error:
        status, message = FAILED, f"failed: {error}" + f"; {after_a_failure}" * bool(after_a_failure)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            status, message = WRONG_INPUT, f"error: {error.strerror}: {shortened(str(error.filename))}"
    except KeyboardInterrupt:
        status, message = FAILED, NOTHING_TO_SAVE
    except Exception as error:
        if not out_of_memory(error):
            sys.stderr.write(f"[rank {launch.env_int('RANK', 0)}] {traceback.format_exc()}")
            return FAILED, ""
        status, message = (
            FAILED,
            f"failed: {OUT_OF_MEMORY} ({str(error)[:200]}); a smaller --micro-batch-size needs less",
        )
    return status, printable(" ".join(message.split()))


def out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the system had no memory left, for which torch has several exceptions."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _outlasted(told_to_end: Callable[[], Any], patience_s: float) -> bool:
    """Wait to be ended, and return whether nobody did.

    A launcher ends all processes as soon as one has left, so that those who are silent leave last. If the one who speaks is
    still there after a minute, it knows of no error.
    """
    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:  # as slurm/node.sh has it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end = time.monotonic() + patience_s
    with suppress(KeyboardInterrupt):
        while not told_to_end():
            if time.monotonic() > end:
                return True
            time.sleep(0.02)
    return False


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
