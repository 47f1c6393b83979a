"""Tables between two marks of a page, written by what measures them."""

from pathlib import Path


def put(page: Path, marks: tuple[str, str], text: str) -> None:
    """`text` in the place of what stands between the marks. ValueError where the page has them not once each."""
    before, rest = page.read_text(encoding="utf-8").split(marks[0])
    _, after = rest.split(marks[1])
    page.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}", encoding="utf-8")
