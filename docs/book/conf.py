"""Sphinx's settings for the book; `python -m docs.book` gathers what it reads and starts it.

Sphinx with MyST-NB, because it is maintained, reads notebooks and docstrings alike, checks its
references, and builds pages that need no network; Furo, because its pages are small.
"""

import labkit

project = "labkit"
version = release = labkit.__version__
html_title = f"labkit {release}"
language = "en"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docs.book.code_links",
    "docs.book.docstrings",
    "docs.book.mathml",
]

# Notebooks and Markdown. Outputs come with the notebooks that are gathered.
nb_execution_mode = "off"
nb_output_stderr = "remove"
# The manager of widgets would come over the network; what a page shows in their place is HTML.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline", "html_image"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

# The reference
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 120
python_display_short_literal_types = True
napoleon_google_docstring = True
napoleon_use_ivar = True
add_module_names = False
default_role = "named"

# How it looks: a theme without scripts, fonts or icons from elsewhere, light and dark.
html_theme = "furo"
html_css_files = ["widgets.css", "book.css"]
html_js_files = ["book.js"]
html_show_sphinx = False
html_copy_source = False
html_show_copyright = False
html_domain_indices = False
html_use_index = False
html_theme_options = {"navigation_with_keys": False}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-dark"
