from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from atoll.report.markup import Safe, join, tag, text


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.data = ""

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, attributes))

    def handle_data(self, data: str) -> None:
        self.data += data


printable = st.text(st.characters(min_codepoint=32, exclude_categories=["Cc", "Cs"]))


@given(printable)
def test_any_text_reads_back_as_text_in_content_and_attributes(value: str) -> None:
    reader = Reader()
    reader.feed(tag("p", value, title=value))
    reader.close()
    assert reader.tags == [("p", [("title", value)])]
    assert reader.data == value


def test_markup_is_not_escaped_twice() -> None:
    assert tag("p", tag("b", "<"), Safe("&amp;")) == "<p><b>&lt;</b>&amp;</p>"
    assert join("<", Safe("<br>")) == "&lt;<br>"


def test_control_characters_and_lone_surrogates_are_replaced() -> None:
    assert text("a\x00b\x1b[2J\ud800\u0085") == "a\ufffdb\ufffd[2J\ufffd\ufffd"
    assert text("line\nbreak\ttab") == "line\nbreak\ttab"


def test_attribute_names_and_empty_elements() -> None:
    assert (
        tag("rect", class_="a", fill_opacity="0.5", x=None)
        == '<rect class="a" fill-opacity="0.5"/>'
    )
    assert tag("rect", tag("title", "t")) == "<rect><title>t</title></rect>"
    assert tag("meta", name="viewport") == '<meta name="viewport">'
    assert tag("p") == "<p></p>"
