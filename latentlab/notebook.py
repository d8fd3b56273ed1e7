"""Display of results in notebooks: a summary in HTML, and the page of a fit or comparison.

Both are made by modules that are imported at the first use, so that the classes below do not depend on the report.
"""

from typing import TYPE_CHECKING, Any

from latentlab.registry import resolve

if TYPE_CHECKING:
    from latentlab.study.pages import Page


class Displayed:
    """Base class of objects that a notebook displays as a summary (`latentlab.report.cards`)."""

    def _repr_html_(self) -> str:
        return str(resolve("latentlab.report.cards:card")(self))


class Reported(Displayed):
    """Base class of results that have a page."""

    def report(self) -> "Page":
        """Page with the sections of a run's report; a notebook displays it, and `save(path)` writes it.

        Raises:
            MissingDependencyError: jinja2 is not installed.
        """
        page: Any = resolve("latentlab.study.pages:page_of")(self)
        return page
