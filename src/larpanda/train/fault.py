"""Faults on demand: tests say in LARPANDA_FAULT what goes wrong where, and the program they start needs no patching."""

import errno
import os
import signal

from larpanda.parallel import rank


def fault_point(name: str, step: int) -> None:
    """A place where ``LARPANDA_FAULT="kill@checkpoint.rename:step=30,rank=0"`` can strike; nothing without it.

    Actions: kill, term and usr1 send this process the signal, full raises what a full disk does. Without a step it is
    every step, without a rank the first process.
    """
    action, _, place = os.environ.get("LARPANDA_FAULT", "").partition("@")
    point, _, conditions = place.partition(":")
    wanted = dict(pair.split("=") for pair in conditions.split(",") if pair)
    if point != name or int(wanted.get("step", step)) != step or int(wanted.get("rank", 0)) != rank():
        return
    if action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    sent = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}
    os.kill(os.getpid(), sent[action])
