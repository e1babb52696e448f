"""HTML and SVG as nested calls; every piece of text is escaped unless :func:`tag` itself made it.

Site names, reasons and metric names come from other machines. Escaping is therefore not the caller's
duty but a property of the only function that makes an element.
"""

from __future__ import annotations

import html
import re

__all__ = ["Safe", "join", "tag", "text"]

_VOID = frozenset({"meta", "br", "hr", "circle", "line", "rect", "path", "polygon"})
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Safe(str):
    """Markup that has already been escaped."""

    __slots__ = ()


def text(value: object) -> Safe:
    """``value`` as escaped text; control characters and lone surrogates become U+FFFD.

    >>> text("<b> & 'c'")
    '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    if isinstance(value, Safe):
        return value
    return Safe(html.escape(_CONTROL.sub("\ufffd", str(value)), quote=True))


def join(*parts: object) -> Safe:
    """The parts one after another, escaped where they are not markup yet."""
    return Safe("".join(map(text, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Safe:
    """One element. ``class_`` stands for ``class``, ``_`` in a name for ``-``; None leaves one out.

    >>> tag("p", "1 < 2", class_="note", aria_label=None)
    '<p class="note">1 &lt; 2</p>'
    """
    opening = [name]
    for key, value in attributes.items():
        if value is not None:
            opening.append(f'{key.rstrip("_").replace("_", "-")}="{text(value)}"')
    start = " ".join(opening)
    if name in _VOID and not children:
        return Safe(f"<{start}>" if name in ("meta", "br", "hr") else f"<{start}/>")
    return Safe(f"<{start}>{join(*children)}</{name}>")
