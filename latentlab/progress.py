"""Progress bars on a terminal and in a notebook; there is none elsewhere, such as in a log file."""

import sys
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without ipywidgets tqdm warns, and shows a bar of text in a notebook
    from tqdm.auto import tqdm as _tqdm


class tqdm(_tqdm):
    """Progress bar of tqdm, whose default `disable=None` shows it on a terminal and in a notebook only."""

    def __init__(self, *args: Any, disable: bool | None = None, **options: Any) -> None:
        options["disable"] = False if disable is None and in_notebook() else disable
        super().__init__(*args, **options)


def in_notebook() -> bool:
    """Whether the process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
