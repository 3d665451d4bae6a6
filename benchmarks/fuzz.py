"""Fuzz what reads what strangers wrote: configurations, rows of event files. Guided by coverage, on Linux:

    pip install atheris
    python benchmarks/fuzz.py config -max_total_time=300
    python benchmarks/fuzz.py rows -max_total_time=300

Any bytes give a configuration or a ValueError, an ``Event`` or a ValueError. Whatever else is raised stops the run, and
the bytes that did it are written to a file of the working folder. The tests give both some hundred random bytes.
"""

import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np

try:
    import atheris
except ImportError:  # the tests do without
    atheris = None

with atheris.instrument_imports(include=["larpanda"]) if atheris and __name__ == "__main__" else nullcontext():
    from larpanda.config import config_from_json, override
    from larpanda.data import open_events
    from larpanda.data.rows import TYPES, Row, write_rows
    from larpanda.train.recipes import FinetuneConfig, nano

JSON = b'0123456789.-+eE,:"[]{}nulltruefalse '
TEXT = json.dumps(asdict(nano())).encode()


def fuzz_config(data: bytes) -> bool:
    """The JSON of a recipe with bytes written over some of its own, and a setting. Whether it was taken."""
    changed = bytearray(TEXT)
    place = int.from_bytes(data[:2], "little") % len(changed)
    kind = data[2] if len(data) > 2 else 0
    changed[place : place + kind % 4] = bytes(JSON[byte % len(JSON)] for byte in data[3 : 3 + kind // 64])
    try:
        config = nano()
        try:
            values = json.loads(changed)
        except ValueError:
            pass
        else:
            if isinstance(values, dict):
                config = config_from_json(FinetuneConfig, values, "fuzzed")
        if kind % 2:
            override(config, [data[7:].decode(errors="replace")])
    except ValueError:
        return False
    return True


def fuzz_rows(data: bytes) -> bool:
    """A file of one event whose lists have any numbers and about the right lengths. Whether there is an event."""
    lists = {}
    for name, (dtype, width) in zip(TYPES, zip(TYPES.values(), (8, 6, 6, 5, 4, 5), strict=True), strict=True):
        head, data = data[:3], data[3:]
        rows = head[0] % 6 if head else 0
        extra = head[1] % width if len(head) > 1 and head[1] > 200 else 0  # in one of five cases it does not fit
        n = rows * width + extra
        bits = np.dtype(dtype).itemsize * n
        raw = (data[:bits] or b"\0").ljust(bits, b"\1") if n else b""
        small = np.frombuffer(raw[:n].ljust(n, b"\0"), np.uint8)  # small whole numbers, which look like labels
        lists[name] = np.frombuffer(raw, dtype) if len(head) > 2 and head[2] % 4 == 0 else small.astype(dtype)
        data = data[bits:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.parquet"
        write_rows(path, [Row(**lists)])
        try:
            event = open_events(str(path))[0]
        except ValueError:
            return False
        if event.problem() is None:
            event.visible(0.13)
    return True


TARGETS = {"config": fuzz_config, "rows": fuzz_rows}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"which? {' or '.join(TARGETS)}\n\n{__doc__}")
    if atheris is None:
        raise SystemExit("pip install atheris")
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
