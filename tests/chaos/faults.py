"""What goes wrong. Each fault is a function that does it once and returns what it did; None when it cannot be now.

:class:`Deck` deals them like cards, so that every fault comes once before any comes twice.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from threading import Event
from typing import Final

from chaos.imagers import Share, State
from chaos.lab import LEASE_S, Lab
from chaos.stores import Postgres, Sqlite

Fault = Callable[[Lab], str | None]

_MOMENT: Final = Event()
_TRIES: Final = 30
_EARLY: Final = 0.2
"""Share of kills that may hit a process which only starts."""

_SERVER: Final = "the server is stopped"
_DISK: Final = "the disk is full"


def _kill(lab: Lab, role: str) -> str | None:
    """Mostly of what is at work; of what is killed while it starts, again and again, nothing would be seen."""
    early = lab.rng.random() < _EARLY
    found = [p for p in lab.processes if (p.can_be_harmed if early else p.is_at_work) and role in p.roles]
    if not found:
        return None
    chosen = lab.rng.choice(found)
    chosen.kill()
    return f"kill -9: {chosen.name.partition('-')[0]}"


def kill_scorer(lab: Lab) -> str | None:
    """kill -9."""
    return _kill(lab, "score")


def kill_watcher(lab: Lab) -> str | None:
    """kill -9."""
    return _kill(lab, "watch")


def kill_trainer(lab: Lab) -> str | None:
    """kill -9."""
    return _kill(lab, "trainer")


def kill_everything(lab: Lab) -> str | None:
    """A host without power: all processes at once."""
    if not all(process.is_at_work for process in lab.processes):
        return None
    for process in lab.processes:
        process.kill()
    return "kill -9: everything at once"


def hold_scorer(lab: Lab) -> str | None:
    """SIGSTOP for longer than a lease lasts, SIGCONT: a late finisher."""
    found = [p for p in lab.processes if p.is_at_work and "score" in p.roles]
    if not found:
        return None
    chosen = lab.rng.choice(found)
    name = chosen.name.partition("-")[0]
    for _ in range(_TRIES):
        chosen.pause()
        if lab.holds_lease(chosen):
            lab.later(LEASE_S + 2.0, f"held: {chosen.name}", chosen.resume)
            return f"held past its lease: {name}"
        chosen.resume()
        _MOMENT.wait(0.05)
    return None


def hold_watcher(lab: Lab) -> str | None:
    """SIGSTOP for a while."""
    found = [p for p in lab.processes if p.is_at_work and "watch" in p.roles]
    if not found:
        return None
    found[0].pause()
    lab.later(4.0, f"held: {found[0].name}", found[0].resume)
    return f"held: {found[0].name}"


def _stop_server(lab: Lab, mode: str) -> str | None:
    store = lab.store
    if not isinstance(store, Postgres) or lab.under_way(_SERVER) or lab.under_way(_DISK) or not store.is_up:
        return None
    store.stop("immediate" if mode == "immediate" else "fast")
    lab.later(lab.rng.uniform(1.0, 6.0), _SERVER, store.mend)
    return f"server stopped: {mode}"


def crash_server(lab: Lab) -> str | None:
    """A stop without a word to anybody; the server recovers from its log."""
    return _stop_server(lab, "immediate")


def stop_server(lab: Lab) -> str | None:
    """A stop in order, as for an update."""
    return _stop_server(lab, "fast")


def drop_connections(lab: Lab) -> str | None:
    """All of marcod's."""
    if not isinstance(lab.store, Postgres) or lab.under_way(_SERVER) or not lab.store.is_up:
        return None
    return "all connections dropped" if lab.store.drop_connections() else None


def kill_backend(lab: Lab) -> str | None:
    """kill -9 one of the server's own processes."""
    if not isinstance(lab.store, Postgres) or lab.under_way(_SERVER) or not lab.store.is_up:
        return None
    return "kill -9: a process of the server" if lab.store.kill_backend() else None


def fill_disk(lab: Lab) -> str | None:
    """No byte left where the database is."""
    store = lab.store
    if not store.quota.limited or lab.under_way(_DISK) or lab.under_way(_SERVER):
        return None
    store.quota.fill()

    def undo() -> None:
        store.quota.free()
        store.mend()

    lab.later(lab.rng.uniform(2.0, 6.0), _DISK, undo)
    return "disk of the database filled"


def _some_file(lab: Lab) -> tuple[Share, str] | None:
    found = [share for share in lab.shares if share.is_there and share.intact()]
    if not found:
        return None
    share = lab.rng.choice(found)
    return share, lab.rng.choice(share.intact())


def truncate_file(lab: Lab) -> str | None:
    """Cut, and mended later."""
    if (chosen := _some_file(lab)) is None:
        return None
    share, path = chosen
    lab.later(lab.rng.uniform(0.2, 8.0), "a file is truncated", share.truncate(path))
    return "file truncated, mended later"


def rewrite_file(lab: Lab) -> str | None:
    """Another image under the old name, in place."""
    if (chosen := _some_file(lab)) is None:
        return None
    share, path = chosen
    share.write(path, lab.rng.randrange(8), State.INTACT, share.truth[path].image, halves=lab.rng.random() < 0.5)
    return "file rewritten"


def touch_file(lab: Lab) -> str | None:
    """Another time, the same bytes."""
    if (chosen := _some_file(lab)) is None:
        return None
    chosen[0].touch(chosen[1])
    return "file touched"


def _take_share(lab: Lab, *, emptied: bool) -> bool:
    found = [share for share in lab.shares if share.is_there]
    if not found:
        return False
    lab.later(lab.rng.uniform(1.0, 9.0), "a share is away", lab.rng.choice(found).move_away(emptied))
    return True


def unmount(lab: Lab) -> str | None:
    """A share's folder is not there."""
    return "share moved away" if _take_share(lab, emptied=False) else None


def empty_share(lab: Lab) -> str | None:
    """A share's folder lists nothing, as the place where it was mounted does."""
    return "share lists nothing" if _take_share(lab, emptied=True) else None


def hide_folder(lab: Lab) -> str | None:
    """A plate's folder leaves its share for a while."""
    chosen = _some_file(lab)
    back = chosen and chosen[0].hide(chosen[1])
    if back is None:
        return None
    lab.later(lab.rng.uniform(1.0, 8.0), "a folder is away", back)
    return "plate's folder moved away"


def label(lab: Lab) -> str | None:
    """People go on labelling."""
    if isinstance(lab.store, Sqlite) and any(process.is_held for process in lab.processes):
        # It may hold the one lock; whoever waited for it here would hold up every other fault.
        return None
    told = sum(lab.people.label(lab.rng.choice(lab.shares)) for _ in range(4))
    lab.tally["labels given"] += told
    return None


def rescore(lab: Lab) -> str | None:
    """Somebody wants everything scored by another model."""
    lab.people.rescore()
    return "rescore called"


FAULTS: Final[tuple[Fault, ...]] = (
    kill_scorer, kill_watcher, kill_trainer, kill_everything, hold_scorer, hold_watcher, crash_server, stop_server,
    drop_connections, kill_backend, fill_disk, truncate_file, rewrite_file, touch_file, unmount, empty_share,
    hide_folder, rescore,
)  # fmt: skip


_OF_THE_SERVER: Final = (crash_server, stop_server, drop_connections, kill_backend)


def possible(lab: Lab, faults: Sequence[Fault]) -> list[Fault]:
    """Those that this lab can have at all: SQLite has no server, and a disk that cannot be mounted is never filled."""
    never: set[Fault] = set() if isinstance(lab.store, Postgres) else set(_OF_THE_SERVER)
    never |= set() if lab.store.quota.limited else {fill_disk}
    return [fault for fault in faults if fault not in never]


class Deck:
    """The faults in ever new orders: each comes once before any comes twice, but for those that cannot be just then.

    ``done`` counts how often each happened, by its name.
    """

    def __init__(self, faults: Sequence[Fault], rng: random.Random) -> None:
        self._faults, self._rng = faults, rng
        self._hand: list[Fault] = []
        self.done = Counter({fault.__name__: 0 for fault in faults})

    @property
    def missing(self) -> list[str]:
        """Faults that did not happen yet."""
        return [name for name, times in self.done.items() if not times]

    def deal(self, lab: Lab) -> str | None:
        """Do the next fault that is possible now. Returns what it did."""
        self._hand = self._hand or self._rng.sample(self._faults, len(self._faults))
        for fault in (*self._hand, *self._rng.sample(self._faults, len(self._faults))):
            if (told := fault(lab)) is not None:
                self._hand = [other for other in self._hand if other is not fault]
                self.done[fault.__name__] += 1
                return told
        return None
