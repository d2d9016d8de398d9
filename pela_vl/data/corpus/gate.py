"""Admission to the corpus, in order: leak check, deduplication, counting."""

import json

from .outputs import DROPPED, AppendedFiles, Writer
from .records import Finding, key
from .state import Counts, State

HELD_OUT = ""  # stands for the source in the counts of held-out images


class Gate:
    """Admits findings one after the other. All its memory is in the state and the files, so it can be created anew at
    any time.

    Args:
        state: keys that were seen or are held out, and counts.
        files: where dropped images are listed.
        writer: of the admitted images.
    """

    def __init__(self, state: State, files: AppendedFiles, writer: Writer) -> None:
        self.state, self.files, self.writer = state, files, writer
        self.admitted: int = state.fact("admitted", 0)
        self.counts = Counts()

    def take(self, finding: Finding) -> None:
        if finding.held_out:
            self._hold_out(finding)
            return
        leak = self._leak(finding)  # also for an unusable image, because its copies elsewhere may be usable
        reason = finding.reason or leak or self._duplicate(finding)
        if reason is None:
            self.writer.add(finding, self.admitted)
            self.admitted += 1
        else:
            self._write_drop(finding, reason)
        self._count(finding, reason)

    def save(self) -> None:
        """Write admissions and counts to the state; they count once it is committed."""
        self.state.set_fact("admitted", self.admitted)
        self.state.count(self.counts)
        self.counts.clear()

    def _hold_out(self, finding: Finding) -> None:
        keys = [key for scope in finding.held_out_of or [""] for key in _known_by(finding, scope)]
        if finding.digest is not None:
            self.counts[HELD_OUT, "pictures", "by_content"] += 1
        else:
            self.counts[HELD_OUT, "unread", str(finding.reason)] += 1
        self.counts[HELD_OUT, "pictures", "listed"] += 1
        self.state.hold_out(keys)

    def _leak(self, finding: Finding) -> str | None:
        for scope in ("", finding.source):
            keys = _known_by(finding, scope)
            content = keys.pop() if finding.digest is not None else None
            leak = "held_out_id" if any(map(self.state.is_held_out, keys)) else None
            if leak is None and content is not None and self.state.is_held_out(content):
                leak = "held_out_content"
            if leak is not None:
                # hold out its other identities and its pixels too, for sources that know it only by those
                self.state.hold_out([*keys, content] if content is not None else keys)
                return leak
        return None

    def _duplicate(self, finding: Finding) -> str | None:
        id_key = key("id", finding.source, type(finding.id).__name__, finding.id)
        if self.state.has_seen(id_key):
            return "duplicate_id"
        assert finding.digest is not None  # what is fit was read
        if not self.state.is_new(key("content", finding.digest.hex())):
            return "duplicate_content"
        self.state.is_new(id_key)
        return None

    def _write_drop(self, finding: Finding, reason: str) -> None:
        line = {"source": finding.source, "id": finding.id, "reason": reason}
        detail = finding.detail or (finding.path if finding.reason is None else "")
        if detail:
            line["detail"] = detail
        self.files.append(DROPPED, (json.dumps(line) + "\n").encode(), samples=1)

    def _count(self, finding: Finding, reason: str | None) -> None:
        source, counts = finding.source, self.counts
        counts[source, "pictures", "listed"] += 1
        counts[source, "captions", "listed"] += finding.listed
        for name, number in finding.refused.items():
            counts[source, "dropped_captions", name] += number
        if reason is None:
            counts[source, "pictures", "kept"] += 1
            counts[source, "captions", "kept"] += len(finding.captions)
            for name in finding.changes:
                counts[source, "mended", name] += 1
        else:
            counts[source, "dropped_pictures", reason] += 1
            if finding.captions:
                counts[source, "dropped_captions", "with_picture"] += len(finding.captions)


def _known_by(finding: Finding, scope: str) -> list[bytes]:
    """Keys of an image's identities, then of its content, in a scope: one source, or "" for all."""
    keys = [key("identity", scope, identity) for identity in finding.identities]
    return keys if finding.digest is None else [*keys, key("content", scope, finding.digest.hex())]
