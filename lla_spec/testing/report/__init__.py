"""What a run leaves for others: the JSON document, one HTML page, a Markdown summary, and two runs compared.

    document → write, write_html, markdown, compare

Every one of them reads the document alone, so a page or a comparison can be made from the JSON on another machine.
"""

from lla_spec.testing.report.compare import Comparison, compare
from lla_spec.testing.report.document import Document, ReportError, document, read, text_of, validate, write
from lla_spec.testing.report.markdown import append_markdown, markdown
from lla_spec.testing.report.page import html, need_jinja2, write_html

__all__ = [
    "Comparison",
    "Document",
    "ReportError",
    "append_markdown",
    "compare",
    "document",
    "html",
    "markdown",
    "need_jinja2",
    "read",
    "text_of",
    "validate",
    "write",
    "write_html",
]
