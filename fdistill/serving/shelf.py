"""The generators of a service by name: those given at its start, watched, and those added while it runs."""

import gc
import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from fdistill.core.presets import checkpoint as known_checkpoint
from fdistill.core.weight_files import as_one_line
from fdistill.serving.generators import Generator
from fdistill.serving.settings import How

_LOG = logging.getLogger(__name__)


class Shelf:
    """Generators by name; a thread looks whether their folders were made anew."""

    def __init__(self, given: Sequence[str], how: How) -> None:
        """Load all.

        Args:
            given: a path or the name of a shipped checkpoint, or NAME=PATH; without NAME the last part of the path.
            how: they compute.

        Raises:
            CheckpointError: where one cannot be served.
            ValueError: for two of one name, or none at all.
        """
        named = [_named(each) for each in given]
        self._places = {name: known_checkpoint(path) for name, path in named}
        if len(self._places) != len(named) or not named:
            names = ", ".join(name for name, _ in named) or "none"
            raise ValueError(f"give at least one generator, each with a name of its own (NAME=PATH): got {names}")
        self._how = how
        self._stamps = {name: stamp(path) for name, path in self._places.items()}
        self._seen = dict(self._stamps)
        self._found = {name: Generator(name, path, how) for name, path in self._places.items()}
        self.failures: dict[str, str] = {}
        self.reloads = 0
        self._end = threading.Event()

    def names(self) -> list[str]:
        """Of all generators: those given at the start in their order, then what was added."""
        return list(self._found)

    def added(self) -> list[str]:
        """Of those that were added since the start."""
        return [name for name in list(self._found) if name not in self._places]  # another thread may add one

    def all(self) -> list[Generator]:
        """The generators themselves, in that order."""
        return list(self._found.values())

    def add(self, name: str, path: str) -> None:
        """Load a further generator beside the others, or the same one anew; it takes its place once it is warm.

        It is not watched: training rewrites its checkpoint all the time. Requests have to name it.

        Raises:
            ValueError: where a generator that was given at the start has the name, or this one cannot be served.
        """
        if name in self._places:
            raise ValueError(f"{name} is served already from {self._places[name]}, which stays: start with NAME=PATH")
        tidy()  # of what was removed before, as in `look`
        with as_one_line(f"{path} cannot be served"):
            self._found[name] = Generator(name, Path(path), self._how)
        _LOG.info("%s is served from %s", name, path)

    def remove(self, name: str) -> None:
        """Serve a generator that was added no more; batches that have it are made.

        Raises:
            ValueError: where none of that name was added.
        """
        if name in self._places or self._found.pop(name, None) is None:
            raise ValueError(f"{name} was not added while the service runs: there is nothing to take away")
        tidy()  # cycles hold its weights
        _LOG.info("%s is served no more", name)

    def get(self, name: str | None) -> Generator:
        """The generator of a name; of none, the only one that was given at the start.

        Raises:
            ValueError: where there is no such generator.
        """
        if name is None and len(self._places) == 1:
            name = next(iter(self._places))
        if name not in self._found:
            got = "none" if name is None else repr(name[:60])
            raise ValueError(f"model is one of {', '.join(self._found)}: got {got}")
        return self._found[name]

    def look(self) -> None:
        """Load what was made anew and has come to rest since the last look; what is broken leaves the old one."""
        for name, path in self._places.items():
            now, before = stamp(path), self._seen[name]
            self._seen[name] = now
            if now == self._stamps[name] or now != before:
                continue
            self._stamps[name] = now
            tidy()  # what was replaced before: cycles hold its weights, and three are one too many for a device
            try:
                self._found[name] = Generator(name, path, self._how)
            except Exception as error:
                self.failures[name] = f"{name} was made anew and cannot be served, the old one stays: the log says why"
                _LOG.error("%s was made anew and cannot be served, the old one stays: %s", name, error)
                continue
            self.failures.pop(name, None)
            self.reloads += 1
            _LOG.info("%s was made anew: the new one is served", name)

    def watch(self, seconds: float = 2.0) -> None:
        """Look every so many seconds, in a thread, until `close`."""

        def run() -> None:
            while not self._end.wait(seconds):
                self.look()

        threading.Thread(target=run, name="folders", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._end.set()


def tidy() -> None:
    """Collect garbage, and leave out of later collections what is left.

    It is half a million objects, nearly all of modules: to look through them holds up every thread for a quarter of a
    second, each time that Python's collector finds it is due.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _named(given: str) -> tuple[str, str]:
    name, equals, path = given.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", name):
        return name, path
    place = Path(given)
    return (place.absolute().name if place.is_dir() else place.stem), given


def stamp(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Names, sizes, times and inodes of all files of a folder, or of one file; nothing where it is not there."""
    try:
        files = [(str(file), file.stat()) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    except OSError:
        return ()
    return tuple((name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in files)
