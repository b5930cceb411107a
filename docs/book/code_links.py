"""In the code of notebooks and documents, `lk.evaluate` leads to its place in the reference."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

STEP = r'<span class="o">\.</span><span class="n">(\w+)</span>'
NAMES = re.compile(rf'<span class="n">lk</span>((?:{STEP})+)')


def linked(body: str, address: dict[str, str]) -> str:
    """A page's HTML with links on the public names in its highlighted code.

    Args:
        body: the page's HTML.
        address: name -> where it is described: `labkit.Gradient.ramp` and so on.
    """

    def link(found: re.Match[str]) -> str:
        steps = list(re.finditer(STEP, found[1]))
        for count in range(len(steps), 0, -1):
            name = ".".join(["labkit", *(step[1] for step in steps[:count])])
            if name in address:
                end = found.start(1) - found.start() + steps[count - 1].end()
                inside, rest = found[0][:end], found[0][end:]
                return f'<a class="code-link" href="{address[name]}">{inside}</a>{rest}'
        return found[0]

    return NAMES.sub(link, body)


def _link_page(app: Sphinx, page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    if "body" in context:
        address = {
            name: f"{app.builder.get_relative_uri(page, entry.docname)}#{entry.node_id}"
            for name, entry in app.env.domains.python_domain.objects.items()
        }
        context["body"] = linked(context["body"], address)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", _link_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
