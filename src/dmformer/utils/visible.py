"""Names from data as people can tell them apart: spaces that nobody sees, and characters without a shape, are shown."""

import re
import unicodedata

SPACES = re.compile(r"^ +| +$| {2,}")
SHAPELESS = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Unicode's categories of control and format characters, and of separators."""
JOINERS = "\u200c\u200d"
"""They shape the letters of some scripts, and emoji, around them; beside a Latin letter they are invisible."""


def visible(text: str) -> str:
    """A name with spaces at its ends and runs of spaces as ␣, and characters without a shape as \\u200b or the like."""
    if text.isascii() and text.isprintable() and not SPACES.search(text):
        return text
    shown = SPACES.sub(lambda found: "␣" * len(found[0]), text)
    return "".join(_escaped(shown, i) for i in range(len(shown)))


def _escaped(text: str, i: int) -> str:
    one = text[i]
    if one == " " or unicodedata.category(one) not in SHAPELESS:
        return one
    if one in JOINERS and 0 < i < len(text) - 1 and not (text[i - 1].isascii() or text[i + 1].isascii()):
        return one
    return one.encode("unicode_escape").decode()
