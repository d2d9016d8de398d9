"""Admission to the corpus, in order: leak check, deduplication, counting."""

import json

from pela_vl.base.errors import UserError

from .keys import KeySet, key
from .outputs import DROPPED, AppendedFiles, Writer
from .records import Finding
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
        if state.fact("records", 0) and state.fact("seen", None) is None:
            raise UserError(f"{state.path}: was begun by another version of pela_vl; remove its folder and begin again")
        self.seen = KeySet(state.path.with_name("seen.keys"), state.fact("seen", 0))
        self.held_out = KeySet(state.path.with_name("held_out.keys"), state.fact("held_out", 0))
        self.scopes: set[str] = set(state.fact("scopes", []))  # sources that something is held out of, "" for all
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
        self.state.set_fact("seen", self.seen.save())
        self.state.set_fact("held_out", self.held_out.save())
        self.state.set_fact("scopes", sorted(self.scopes))
        self.state.count(self.counts)
        self.counts.clear()

    def _hold_out(self, finding: Finding) -> None:
        if finding.digest is not None:
            self.counts[HELD_OUT, "images", "by_content"] += 1
        else:
            self.counts[HELD_OUT, "unread", str(finding.reason)] += 1
        self.counts[HELD_OUT, "images", "listed"] += 1
        for scope in finding.held_out_of or [""]:
            self.scopes.add(scope)
            for number in _known_by(finding, scope):
                self.held_out.add(number)

    def _leak(self, finding: Finding) -> str | None:
        for scope in ("", finding.source):
            if scope not in self.scopes:
                continue
            keys = _known_by(finding, scope)
            names = keys if finding.digest is None else keys[:-1]
            if any(number in self.held_out for number in names):
                leak = "held_out_id"
            elif finding.digest is not None and keys[-1] in self.held_out:
                leak = "held_out_content"
            else:
                continue
            for number in keys:  # its other names and its pixels are held out too, for sources that know it by those
                self.held_out.add(number)
            return leak
        return None

    def _duplicate(self, finding: Finding) -> str | None:
        id_key = key("id", finding.source, type(finding.id).__name__, finding.id)
        if id_key in self.seen:
            return "duplicate_id"
        assert finding.digest is not None  # what is fit was read
        if not self.seen.add(key("content", finding.digest.hex())):
            return "duplicate_content"
        self.seen.add(id_key)
        return None

    def _write_drop(self, finding: Finding, reason: str) -> None:
        line = {"source": finding.source, "id": finding.id, "reason": reason}
        detail = finding.detail or (finding.path if finding.reason is None else "")
        if detail:
            line["detail"] = detail
        self.files.append(DROPPED, (json.dumps(line) + "\n").encode(), samples=1)

    def _count(self, finding: Finding, reason: str | None) -> None:
        source, counts = finding.source, self.counts
        counts[source, "images", "listed"] += 1
        counts[source, "captions", "listed"] += finding.listed
        for name, number in finding.refused.items():
            counts[source, "dropped_captions", name] += number
        if reason is None:
            counts[source, "images", "kept"] += 1
            counts[source, "captions", "kept"] += len(finding.captions)
            for name in finding.changes:
                counts[source, "mended", name] += 1
        else:
            counts[source, "dropped_pictures", reason] += 1
            if finding.captions:
                counts[source, "dropped_captions", "with_picture"] += len(finding.captions)


def _known_by(finding: Finding, scope: str) -> list[int]:
    """Keys of an image's identities, then of its content, in a scope: one source, or "" for all."""
    keys = [key("identity", scope, identity) for identity in finding.identities]
    return keys if finding.digest is None else [*keys, key("content", scope, finding.digest.hex())]
