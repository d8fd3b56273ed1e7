"""Formulas of docstrings, in LaTeX, as plain text for a terminal."""

import re

WORDS = {"sim": "~", "mid": "|", "propto": "is proportional to", "quad": " ", "cdot": ".", "arg": "arg", "infty": "infinity"}
"""Text of the commands that are not written as their name."""


def plain(text: str) -> str:
    r"""Convert the formulas of a text to plain text, and remove backticks.

    Example:
        >>> plain(r"$$ \mu_{kd} \sim N(\text{mu\_loc}, \sigma^2) $$ for `k`")
        'mu_kd ~ N(mu_loc, sigma^2) for k'
    """
    parts = re.split(r"\$\$(.+?)\$\$|\$(.+?)\$", text.replace("`", ""))
    return " ".join("".join(_formula(one) if i % 3 else one for i, one in enumerate(parts) if one).split())


def displayed(text: str) -> list[str]:
    r"""Lines of a paragraph of displayed formulas; empty for other paragraphs.

    Example:
        >>> displayed(r"$$ z \sim N(0, I) $$ $$ x \mid z \sim p $$")
        ['z ~ N(0, I)', 'x | z ~ p']
    """
    formulas = re.findall(r"\$\$(.+?)\$\$", text)
    return [plain(f"${one}$") for one in formulas] if re.fullmatch(r"(\s*\$\$.+?\$\$[.,]?)+\s*", text) else []


def _formula(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm)\{([^}]*)\}", r"\1", text)
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1) / (\2)", text)
    text = re.sub(r"\\[,;! ]", " ", text).replace(r"\_", "_").replace(r"\|", "|")
    text = re.sub(r"\\([A-Za-z]+)", lambda found: WORDS.get(found.group(1), found.group(1)), text)
    while (inner := re.search(r"\{([^{}]*)\}", text)) is not None:
        content = inner.group(1)
        short = re.fullmatch(r"-?[A-Za-z0-9]*", content)
        text = f"{text[: inner.start()]}{content if short else f'({content})'}{text[inner.end() :]}"
    return re.sub(r"\\(.)", r"\1", text)
