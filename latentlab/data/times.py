"""Conversion of times (numbers, dates and text) to integers that can be sorted and counted.

Whole numbers count steps. For dates, a step is the longest span that divides every gap. It is counted in months if all dates have
the same place in their month (the same day, the end, the first or last working day). It is counted in working days if no date is
on a weekend and a weekend is skipped, and in days otherwise. Times of day have a step if their shortest gap divides all others.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from math import gcd

import numpy as np

from latentlab.data import convert
from latentlab.errors import DataError

WHOLE = re.compile(r"[+-]?\d{1,15}")
FRACTION = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
QUARTER = re.compile(r"(\d{4})([- ]?)[Qq]([1-4])")
QUARTER_AND_YEAR = re.compile(r"^(Q[1-4])[- ]?(\d{4})$", re.IGNORECASE)
"""Pattern of a quarter followed by its year."""
WEEK = re.compile(r"\d{4}-W\d\d")
SORTED = re.compile(r"\d{4}(\D.*)?")
"""Pattern of text that begins with a year; alphabetical order is chronological if all texts have one form."""
ISO = re.compile(r"(\d{4}-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d{1,9})?)?)?)?)?)(Z|[+-]\d\d:?\d\d)?")
NUMERIC_DATE = re.compile(r"(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d\d)([T ]\d\d:\d\d(:\d\d)?)?")
DATE_FORMATS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y-%m", "%Y/%m", "%Y %b", "%Y-%b", "%Y %B", "%b %Y", "%B %Y", "%b-%Y"),
    *("%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%b %d, %Y", "%B %d, %Y"),
)
"""Further unambiguous formats of dates."""
SPANS = {"month": ((12, "year"), (3, "quarter")), "day": ((7, "week"),)}
"""Larger calendar units, by the unit of a tick."""
ROUNDING = 1e-6
"""Relative tolerance for equal gaps between fractions, as a share of the longest gap."""
CLOCK = ((3_600_000_000, "hour"), (60_000_000, "minute"), (1_000_000, "second"), (1000, "millisecond"), (1, "microsecond"))
"""Units of time of day, in microseconds."""


@dataclass(frozen=True)
class Times:
    """Times of units.

    Args:
        written: Times as stored in a dataset: whole numbers, fractions or text.
        key: Sort keys, which are ticks if they can be counted; None for text without a known order.
        tick: Unit of a tick: `step`, `month`, `working day`, `day` or `microsecond`; empty if times cannot be counted.
        name: Function from ticks to times as stored.
        note: Note on the interpretation of the times.
    """

    written: np.ndarray
    key: np.ndarray | None = None
    tick: str = ""
    name: Callable[[np.ndarray], np.ndarray] = lambda ticks: ticks
    note: str = ""

    def step(self, codes: np.ndarray) -> int:
        """Number of ticks between two neighbouring steps, for units in order; 0 without a regular step."""
        if not self.tick or self.key is None:
            return 0
        if self.tick == "step":
            return 1
        gaps = np.diff(self.key)[np.diff(codes) == 0]
        if not len(gaps):
            return 1
        common = gcd(*gaps.tolist())
        return 0 if self.tick == "microsecond" and common != gaps.min() else common

    def span(self, step: int) -> str:
        """The length of a number of ticks, in words.

        Example:
            >>> read(np.array(["2020Q1", "2020Q2"]), "times").span(3)
            '1 quarter'
        """
        larger = CLOCK if self.tick == "microsecond" else (*SPANS.get(self.tick, ()), (1, self.tick))
        size, unit = next(one for one in larger if step % one[0] == 0)
        return f"{step // size} {unit}{'s' * (step != size)}"


def read(times: np.ndarray, what: str) -> Times:
    """Interpret times of one type, as returned by `convert.names`.

    Raises:
        DataError: Dates are ambiguous, do not exist, or have several forms; `what` names them.

    Example:
        >>> read(np.array(["31/12/2019", "01/02/2020"]), "times").written.tolist()
        ['2019-12-31', '2020-02-01']
    """
    if times.dtype.kind == "b":
        return Times(times, times.astype(np.int64))
    if times.dtype.kind == "f" and (times == np.round(times)).all() and np.abs(times).max() < convert.EXACT:
        times = times.astype(np.int64)
    if times.dtype.kind == "f":
        return Times(times, times)
    if times.dtype.kind in "iu":
        return _from_numbers(times.astype(np.int64), what)
    words = [QUARTER_AND_YEAR.sub(r"\2\1", word.strip()) for word in times.tolist()]
    if all(map(WHOLE.fullmatch, words)):
        return _from_numbers(np.array([int(word) for word in words]), what)
    if all(map(FRACTION.fullmatch, words)):
        return read(np.array([float(word) for word in words]), what)
    for form in (_quarters, _weeks, _iso, _numeric_dates, _formatted):
        times_read = form(words, what)
        if times_read is not None:
            return times_read
    found = next(((word, one) for word in words for one in (QUARTER, WEEK, ISO, NUMERIC_DATE) if one.fullmatch(word)), None)
    if found:
        other = next(word for word in words if not found[1].fullmatch(word))
        raise DataError(f"{what}: {other!r} is not a date in the form of {found[0]!r}; write all dates as 2020-01-31.")
    if all(map(SORTED.fullmatch, words)) and len({re.sub(r"\d", "0", word) for word in words}) == 1:
        return Times(times, np.unique(times, return_inverse=True)[1])
    return Times(times, note="The times are text of unknown order, so the order of the rows was kept.")


def on_gaps(times: Times, codes: np.ndarray) -> list[str]:
    """Note on omitted time steps, or on times without a regular step; `codes` are the numbers of the sequences.

    Example:
        >>> on_gaps(read(np.array([1, 2, 5]), "times"), np.zeros(3))
        ['2 time steps are omitted; the steps before and after a gap are treated as consecutive.']
    """
    same = np.diff(codes) == 0
    if times.key is None or not same.any():
        return []
    gaps, step = np.diff(times.key)[same], times.step(codes)
    if step and (gaps > 0).all():
        n = int((gaps // step - 1).sum())
        steps = f"{n} time steps are" if n > 1 else "1 time step is"
        span = "" if times.tick == "step" else f" (one step is {times.span(step)})"
        return [f"{steps} omitted{span}; the steps before and after a gap are treated as consecutive."] if n else []
    if np.ptp(gaps.astype(np.float64)) > ROUNDING * np.abs(gaps).max():
        return ["The times have no regular step; successive times are treated as consecutive steps."]
    return []


def _from_numbers(times: np.ndarray, what: str) -> Times:
    """Interpret whole numbers: as dates if all have the form 20200131, as months if 202001, and as steps otherwise."""
    for digits, form, unit in ((8, "%Y%m%d", "D"), (6, "%Y%m", "M")):
        if len(times) > 1 and (times >= 18 * 10 ** (digits - 2)).all() and (times < 22 * 10 ** (digits - 2)).all():
            try:
                dates = np.array([datetime.strptime(str(one), form) for one in times.tolist()], f"M8[{unit}]")
            except ValueError:
                continue
            interpreted = (
                _from_dates(dates.astype("M8[D]"))
                if unit == "D"
                else _from_months(dates.astype(int), lambda m: m.astype("M8[M]"))
            )

            def name(ticks: np.ndarray, interpreted: Times = interpreted) -> np.ndarray:
                return np.array([int(str(one).replace("-", "")) for one in interpreted.name(ticks)])

            return Times(
                times, interpreted.key, interpreted.tick, name, f"The times were read as dates, such as {interpreted.written[0]}."
            )
    return Times(times, times, "step")


def _from_months(months: np.ndarray, written: Callable[[np.ndarray], np.ndarray], note: str = "") -> Times:
    def name(ticks: np.ndarray) -> np.ndarray:
        return np.array(written(ticks).astype(str).tolist())

    return Times(name(months), months, "month", name, note)


def _quarters(words: list[str], what: str) -> Times | None:
    matches = [QUARTER.fullmatch(word) for word in words]
    if not all(matches):
        return None
    months = np.array([12 * (int(one[1]) - 1970) + 3 * (int(one[3]) - 1) for one in matches if one])
    sign = matches[0][2] if matches[0] else ""
    return _from_months(months, lambda m: np.array([f"{1970 + one // 12}{sign}Q{one % 12 // 3 + 1}" for one in m.tolist()]))


def _weeks(words: list[str], what: str) -> Times | None:
    if not all(map(WEEK.fullmatch, words)):
        return None
    try:
        days = np.array([datetime.strptime(f"{word}-1", "%G-W%V-%u") for word in words], "M8[D]")
    except ValueError as error:
        raise DataError(f"{what}: {error}.") from error

    def name(ticks: np.ndarray) -> np.ndarray:
        dates = [day.isocalendar() for day in ticks.astype("M8[D]").tolist()]
        return np.array([f"{one.year}-W{one.week:02d}" for one in dates])

    return Times(np.array(words), days.astype(np.int64), "day", name)


def _iso(words: list[str], what: str) -> Times | None:
    matches = [one for one in map(ISO.fullmatch, words) if one]
    if len(matches) < len(words):
        return None
    depth = {sum(one[i] is not None for i in (2, 3)) for one in matches}
    zones = {one[7] is not None for one in matches}
    if depth == {0} and zones == {False}:
        return _from_months(_parsed([one[1] for one in matches], "M", what).astype(int), lambda m: m.astype("M8[M]"))
    if 0 in depth or len(zones) > 1 or (zones == {True} and depth != {2}):
        raise DataError(
            f"{what}: the dates have several forms, such as {words[0]!r}; write all as 2020-01-31, or all with the time of day."
        )
    if any(len(one[6] or "") > 7 for one in matches):  # finer than a tick
        return Times(np.array(words), _parsed([one[1].replace(" ", "T") for one in matches], "ns", what).astype(np.int64))
    when = _parsed([one[1].replace(" ", "T") for one in matches], "us", what)
    if zones == {False}:
        return _from_dates(when)
    ahead = [one[7].replace(":", "").replace("Z", "+0000") for one in matches]
    when = when - np.array([int(f"{one[0]}1") * (60 * int(one[1:3]) + int(one[3:])) for one in ahead], "m8[m]")
    return _from_dates(when, zone="Z")


def _numeric_dates(words: list[str], what: str) -> Times | None:
    matches = [one for one in map(NUMERIC_DATE.fullmatch, words) if one]
    if len(matches) < len(words):
        return None
    if any(len(one[4]) == 2 for one in matches) or len({one[2] for one in matches}) > 1:
        raise DataError(f"{what}: the order of day, month and year in {words[0]!r} is ambiguous; write dates as 2020-01-31.")
    day_first = all(int(one[3]) <= 12 for one in matches)
    month_first = all(int(one[1]) <= 12 for one in matches) and matches[0][2] != "."
    if day_first and month_first and any(one[1] != one[3] for one in matches):
        example = next(word for word, one in zip(words, matches, strict=True) if one[1] != one[3])
        raise DataError(f"{what}: {example!r} may be day/month/year or month/day/year; write dates as 2020-01-31.")
    day, month = (1, 3) if day_first else (3, 1)
    clocks = [(one[5] or "").replace(" ", "T") for one in matches]
    days = [f"{one[4]}-{int(one[month]):02d}-{int(one[day]):02d}" for one in matches]
    dates = _parsed([f"{one}{clock}" for one, clock in zip(days, clocks, strict=True)], "us" if any(clocks) else "D", what)
    return _from_dates(dates, note=f"The times were read as {'day/month/year' if day_first else 'month/day/year'}.")


def _formatted(words: list[str], what: str) -> Times | None:
    for form in DATE_FORMATS:
        try:
            dates = np.array([datetime.strptime(word, form) for word in words], "M8[D]")
        except ValueError:
            continue
        note = f"The times were read as dates: {words[0]!r} is {dates[0]}."
        if "%d" in form:
            return _from_dates(dates, note=note)
        return _from_months(dates.astype("M8[M]").astype(int), lambda m: m.astype("M8[M]"), note)
    return None


def _parsed(words: list[str], unit: str, what: str) -> np.ndarray:
    try:
        return np.array(words, f"M8[{unit}]")
    except ValueError as error:
        for word in words:
            try:
                np.array([word], f"M8[{unit}]")
            except ValueError:
                raise DataError(f"{what}: {word!r} is not a valid date.") from error
        raise


def _from_dates(when: np.ndarray, *, zone: str = "", note: str = "") -> Times:
    """Interpret dates or times of day in the coarsest calendar unit in which they are regular."""
    day = when.astype("M8[D]")
    if not zone and (day != when).any() and len(set((when - day).tolist())) == 1:  # every day, or month, at the same time of day
        dates, clock = _from_dates(day, note=note), convert.iso(when[:1])[0][len("1970-01-01") :]
        return replace(
            dates, written=_at_time_of_day(dates.written, clock), name=lambda ticks: _at_time_of_day(dates.name(ticks), clock)
        )
    if zone or (day != when).any():
        microseconds = when.astype("M8[us]")
        form = np.datetime_data(convert.iso(microseconds).astype("M8").dtype)[0]

        def moment(ticks: np.ndarray) -> np.ndarray:
            return np.array([f"{one}{zone}" for one in ticks.astype("M8[us]").astype(f"M8[{form}]").astype(str)])

        return Times(moment(microseconds.astype(np.int64)), microseconds.astype(np.int64), "microsecond", moment, note)
    written = np.array(day.astype(str).tolist())
    months = day.astype("M8[M]")
    for place in _days_in_month(int((day[0] - months[0].astype("M8[D]")).astype(int))):
        if len(set(months.tolist())) > 1 and (place(months) == day).all():
            return Times(written, months.astype(int), "month", _in_months(place), note)
    if np.is_busday(day).all() and ((np.diff(np.unique(day)).astype(int) == 3) & (_weekday(np.unique(day))[:-1] == 4)).any():
        origin = day.min()
        ticks = np.busday_count(origin, day)
        return Times(written, ticks, "working day", _written(lambda k: np.busday_offset(origin, k)), note)
    return Times(written, day.astype(np.int64), "day", _written(lambda k: k.astype("M8[D]")), note)


def _at_time_of_day(dates: np.ndarray, clock: str) -> np.ndarray:
    return np.array([f"{one}{clock}" for one in dates])


def _in_months(place: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return _written(lambda months: place(months.astype("M8[M]")))


def _written(dates: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda ticks: np.array(dates(ticks).astype(str).tolist())


def _days_in_month(first: int) -> tuple[Callable[[np.ndarray], np.ndarray], ...]:
    """Functions from months to dates of a monthly series: a fixed day, the last day, the last or first working day."""

    def end(months: np.ndarray) -> np.ndarray:
        return (months + 1).astype("M8[D]") - 1

    return (
        lambda months: np.minimum(months.astype("M8[D]") + first, end(months)),
        end,
        lambda months: np.busday_offset(end(months), 0, roll="backward"),
        lambda months: np.busday_offset(months.astype("M8[D]"), 0, roll="forward"),
    )


def _weekday(days: np.ndarray) -> np.ndarray:
    """Days of the week, from 0 for Monday."""
    return (days.astype(int) + 3) % 7
