"""Progress bars on a terminal and in a notebook; there is none elsewhere, such as in a log file."""

import sys
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without ipywidgets tqdm warns, and shows a bar of text in a notebook
    from tqdm.auto import tqdm as automatic_tqdm


class NotebookTqdm(automatic_tqdm):
    """Progress bar of tqdm that the default `disable=None` shows, although the output of a notebook is no terminal."""

    def __init__(self, *args: Any, disable: bool | None = None, **options: Any) -> None:
        super().__init__(*args, disable=bool(disable), **options)  # type: ignore[call-overload]


def _in_notebook() -> bool:
    """Whether the process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


tqdm: type[automatic_tqdm] = NotebookTqdm if _in_notebook() else automatic_tqdm
