"""Readers that do what damaged files do to real ones. Other processes import them: nothing of the tests is in here."""

import os
import signal
import time

from larpanda.data.pilarnet import EventFile

POISON = "poison"  # a file of this name spoils what its process reads next
spoilt = False


class Faulty(EventFile):
    """Behaves as its file is called. Event 2 is where it happens."""

    def __init__(self, path, **options):
        if path.stem == "hangs_when_opened":
            time.sleep(3600)
        if path.stem == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        super().__init__(path, **options)

    def __len__(self):
        return 10**12 if self._path.stem == "endless" else super().__len__()

    def __getitem__(self, entry, /):
        global spoilt
        if entry != 2:
            return super().__getitem__(entry)
        what = self._path.stem
        if what == "hangs":
            signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGALRM})
            time.sleep(3600)
        if what == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "raises":
            raise KeyError("no such\nthing")
        if what == POISON:
            spoilt = True
        if what == "victim" and spoilt:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__getitem__(entry)


def as_nobody(path, **options):
    """Reads as a user who may not."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    return EventFile(path, **options)
