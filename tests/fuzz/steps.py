"""What a fuzzer does to a node, as lines of text that can be kept, shortened and played again.

| line | what happens |
| --- | --- |
| `setup 1` | which of the nodes of `setups.py` it is; the first line |
| `a > 10 0c 00\\|04` | client a sends these bytes, in two reads, and the loop turns |
| `a >> 10 0c 00` | it sends them, and the loop has not turned yet |
| `a drops` | its connection breaks |
| `a jams`, `a reads` | it reads no more from its connection; it reads again |
| `a answers` | it acknowledges whatever it has been sent |
| `clock 1.5` | so many seconds pass |
| `node commits`, `node commits-one` | all groups, or the one that is on its way, reach the engine |
| `node full`, `node room` | the disk is full; it is not any more |
| `node low`, `node scarce`, `node plenty` | the disk has no room for QoS 0; for no publisher's messages; for all |
| `node admits` | those that wait for their passwords to be checked get their answers |
| `node rules` | other rules hold for those who are asked who they are |
| `node expels` | the user `me` is none any more |
| `again 99 2` | 99 times more what the 2 lines before did |
| `node dies`, `node restarts` | it is killed, or stopped in good order, and started again on the same engine |

A client that sends without having a connection opens one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.conformance.packets import KINDS, Unreadable, take

SENDS: Final = ">"
SENDS_EARLY: Final = ">>"
CLIENT_VERBS: Final = frozenset((SENDS, SENDS_EARLY, "drops", "jams", "reads", "answers"))
ROOM: Final = ("plenty", "low", "scarce")
"""How much room the disk has, as a node is told by its guard."""
_REPEATED: Final = 4
"""Steps at most that are looked at as what comes again and again."""
NODE_VERBS: Final = frozenset(
    ("commits", "commits-one", "full", "room", *ROOM, "admits", "rules", "expels", "dies", "restarts")
)


@dataclass(frozen=True, slots=True)
class Step:
    """One line. `subject` is a client, `node` or `clock`; `seconds` is of the clock."""

    subject: str
    verb: str = ""
    reads: tuple[bytes, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.subject == "clock":
            return f"clock {self.seconds:g}"
        if not self.reads:
            return f"{self.subject} {self.verb}"
        return f"{self.subject} {self.verb} {'|'.join(read.hex(' ') for read in self.reads)}"


@dataclass(frozen=True, slots=True)
class Sequence:
    """All that happens to one node."""

    setup: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join([f"setup {self.setup}", *_lines(self.steps)])


def _lines(steps: tuple[Step, ...]) -> Iterator[str]:
    """The steps as lines, and above each what its bytes are, where they are packets."""
    at = 0
    while at < len(steps):
        size, times = _repeated(steps, at)
        for step in steps[at : at + size]:
            if kinds := names(b"".join(step.reads)):
                yield f"# {kinds}"
            yield str(step)
        if times:
            yield f"again {times} {size}"
        at += size * (times + 1)


def _repeated(steps: tuple[Step, ...], at: int) -> tuple[int, int]:
    """How many steps come again and again from here on, and how often they come again; (1, 0): it is none."""
    for size in range(1, _REPEATED + 1):
        block, times = steps[at : at + size], 0
        while steps[at + size * (times + 1) : at + size * (times + 2)] == block:
            times += 1
        if times:
            return size, times
    return 1, 0


def names(data: bytes) -> str:
    """The types of the packets that there are in these bytes."""
    return " ".join(KINDS[packet[0] >> 4] for packet in packets(data))


def packets(data: bytes) -> Iterator[bytes]:
    """The bytes, packet by packet; what is no packet any more comes as one piece."""
    held = bytearray(data)
    while held:
        before = bytes(held)
        try:
            taken = take(held)
        except Unreadable:
            taken = None
        if taken is None:
            yield before
            return
        yield before[: len(before) - len(held)]


def parse(text: str) -> Sequence:
    """What `str` of a sequence has written.

    Raises:
        ValueError: a line is not understood.
    """
    setup = 0
    steps: list[Step] = []
    for line in text.splitlines():
        subject, _, rest = line.strip().partition(" ")
        if not subject or subject.startswith("#"):
            continue
        verb, _, data = rest.partition(" ")
        if subject == "setup":
            setup = int(rest)
        elif subject == "again":
            steps += steps[-int(data) :] * int(verb)
        elif subject == "clock":
            steps.append(Step(subject, seconds=float(rest)))
        elif verb in (SENDS, SENDS_EARLY):
            steps.append(Step(subject, verb, tuple(bytes.fromhex(read) for read in data.split("|"))))
        elif verb in (NODE_VERBS if subject == "node" else CLIENT_VERBS):
            steps.append(Step(subject, verb))
        else:
            raise ValueError(f"no step of a sequence: {line}")
    return Sequence(setup, tuple(steps))
