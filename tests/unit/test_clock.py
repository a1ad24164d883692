"""Times in the file: one form that sorts as text, read back whatever wrote it."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_sqlite import clock

UTC = timezone.utc


@given(st.integers(min_value=0, max_value=4_000_000_000_000))
def test_instants_come_back_to_the_millisecond(millis: int) -> None:
    """Writing and reading an instant keeps its milliseconds."""
    text = clock.to_text(millis / 1000)
    back = clock.from_text(text)
    assert abs((back - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1) - millis) <= 1


@given(st.lists(st.floats(min_value=0, max_value=4e9), min_size=2, max_size=20))
def test_text_sorts_as_time(instants: list[float]) -> None:
    """The order of the texts is the order of the instants."""
    instants.sort()
    texts = [clock.to_text(instant) for instant in instants]
    assert texts == sorted(texts)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24 08:00:00",
        "2026-11-24 08:00:00.000",
        "2026-11-24T08:00:00Z",
        "2026-11-24T08:00:00.000Z",
        "2026-11-24T10:00:00+02:00",
        "2026-11-24T08:00:00.0000000+00:00",
        "2026-11-24T03:30:00.0-04:30",
    ],
)
def test_every_iso_form_is_read(text: str) -> None:
    """SQLite's and ISO's forms, with and without fractions and offsets."""
    assert clock.parse_time(text) == datetime(2026, 11, 24, 8, tzinfo=UTC)


@pytest.mark.parametrize("value", ["", "soon", "2026-13-01 00:00:00", 1732435200, None, b"2026"])
def test_what_is_no_time_is_none(value: object) -> None:
    """Numbers are no times here."""
    assert clock.parse_time(value) is None


def test_from_text_says_what_form_it_wants() -> None:
    """The error names the form."""
    with pytest.raises(ValueError, match="YYYY-MM-DD HH:MM:SS"):
        clock.from_text("soon")


def test_a_naive_datetime_is_utc() -> None:
    """Both ways."""
    naive = datetime(2026, 11, 24, 8)  # noqa: DTZ001 - that is what is tested
    assert clock.datetime_to_text(naive) == "2026-11-24 08:00:00.000"
    assert clock.parse_time(naive) == naive.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("instant_s", "text"),
    [
        (0, "1970-01-01 00:00:00.000"),
        (1795507200.9999, "2026-11-24 08:00:00.999"),
        (1795507199.9996, "2026-11-24 07:59:59.999"),
        (1795507200.25, "2026-11-24 08:00:00.250"),
    ],
)
def test_milliseconds_are_rounded_down(instant_s: float, text: str) -> None:
    """A time in the file is never later than the instant: what is due by it is due."""
    assert clock.to_text(instant_s) == text
    moment = datetime.fromtimestamp(instant_s, UTC)
    assert clock.datetime_to_text(moment) == text


@given(st.datetimes(timezones=st.timezones()))
def test_nothing_is_due_early(moment: datetime) -> None:
    """Nor more than a millisecond late; what is due by now stays due."""
    try:
        utc = moment.astimezone(UTC)
        due = clock.from_text(clock.due_text(moment))
    except OverflowError:
        return
    if utc > datetime.now(UTC):
        assert timedelta(0) <= due - utc < timedelta(milliseconds=1)
    else:
        assert timedelta(0) <= utc - due < timedelta(milliseconds=1)


def test_the_last_millisecond_of_summer_time_is_followed_by_the_next() -> None:
    """Not by the one an hour later that the same clock shows."""
    new_york = ZoneInfo("America/New_York")
    last = datetime(2098, 11, 2, 1, 59, 59, 999_900, new_york)
    assert last.utcoffset() == timedelta(hours=-4)
    assert last.replace(fold=1).utcoffset() == timedelta(hours=-5)
    assert clock.due_text(last) == "2098-11-02 06:00:00.000"


def test_the_last_moment_is_due_in_its_own_millisecond() -> None:
    """There is no later one."""
    last = datetime.max.replace(tzinfo=UTC)
    assert clock.due_text(last) == "9999-12-31 23:59:59.999"


@given(st.datetimes(timezones=st.timezones()))
def test_datetimes_of_any_zone_are_written_in_utc(moment: datetime) -> None:
    """And read back, down to the millisecond, whatever the year."""
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        return
    text = clock.datetime_to_text(moment)
    assert len(text) == len("YYYY-MM-DD HH:MM:SS.mmm")
    assert clock.from_text(text) == utc.replace(microsecond=utc.microsecond // 1000 * 1000)


def test_a_far_future_stays_in_the_form() -> None:
    """A countdown of a million years ends in the year 9999."""
    assert clock.after_text(1e14).startswith("9999-")


def test_threads_do_not_see_each_others_seconds() -> None:
    """The cached second and its text belong together."""
    wrong: list[str] = []

    def write(second: int) -> None:
        texts = (clock.to_text(second) for _ in range(20_000))
        wrong.extend(text for text in texts if not text.endswith(f":{second:02d}.000"))

    threads = [threading.Thread(target=write, args=(second,)) for second in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
