"""Text from outside, made safe to show: what servers, applications and files say may hold anything.

A server's error message, an application name or a status file may carry escape sequences, which a terminal obeys, or a
new line followed by what looks like another entry of the log. So at the edge, where text is logged or printed, each
character that a terminal could act on is written out as Python would write it: ``\\x1b`` in place of ESC.
"""

from __future__ import annotations

import logging
import re
import traceback

# C0 but for tab and new line, DEL, C1, the separators that end a line, what turns the direction of writing, and halves
# of characters, which no output can encode.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with each character that a terminal could act on written out. Tabs and new lines stay."""
    return text if text.isprintable() else UNPRINTABLE.sub(_written_out, text)


def one_line(text: str) -> str:
    """The same on one line: each run of white space is one space."""
    return printable(" ".join(text.split()))


def _written_out(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class PrintableFilter(logging.Filter):
    """Makes what is logged printable, and indents all but its first line, so that no text can pass for a log entry."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True: every record is logged."""
        message = record.getMessage()
        entry = _entry(message)
        if entry != message:  # else it stays a template and its arguments, by which tools tell messages apart
            record.msg, record.args = entry, ()
        if record.exc_info and not record.exc_text:
            # What a formatter would write itself: it takes what is there already.
            record.exc_text = _entry("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return True


def _entry(text: str) -> str:
    return printable(text).replace("\n", "\n  ")


def make_log_printable() -> None:
    """Have the log of the package made printable, in every process that imports it."""
    log = logging.getLogger("pgdbpool")
    if not any(isinstance(each, PrintableFilter) for each in log.filters):
        log.addFilter(PrintableFilter())
