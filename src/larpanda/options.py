"""What the command line is made of: a parser that complains in one line, and the types of its arguments."""

import argparse
import math
from collections.abc import Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A mistake is one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say it and leave."""
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")


class Version(argparse.Action):
    """argparse's own would wrap the citation."""

    def __init__(self, option_strings: Sequence[str], dest: str, text: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="version, and how to cite")
        self.text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Say it and leave."""
        print(self.text)
        parser.exit()


def number(text: str) -> int:
    """A whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def numbers(text: str) -> list[int]:
    """Such numbers with commas between."""
    return [number(part) for part in text.split(",")]


def heads(text: str) -> tuple[str, ...]:
    """Heads of a model, with commas between."""
    names = tuple(text.split(","))
    if len(set(names)) < len(names) or not set(names) <= {"semantic", "particle", "interaction"}:
        raise argparse.ArgumentTypeError(f"{text}: expected semantic, particle, interaction, or several as a,b,c")
    return names


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def shard(text: str) -> tuple[int, int]:
    """Share I of N as ``I/N``."""
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"{text}: expected I/N with I from 0 to N - 1, such as 0/8")
    return int(i), int(n)


def one_line(error: object) -> str:
    """What an error says, without line breaks; of the system's, file and reason."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split())
