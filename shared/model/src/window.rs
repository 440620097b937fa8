//! Times of the week in which something may begin.

use std::time::Duration;

use crate::time::Time;

const HOUR: u32 = 60;
const DAY: u32 = 24 * HOUR;
const WEEK: u32 = 7 * DAY;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Windows of the week, in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows(Vec<Window>);

/// From which minute of the week, Monday's first being 0, and for how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    from: u32,
    minutes: u32,
}

impl Windows {
    /// Reads windows such as `Sat 22:00-04:00` and `daily 01:30-05:00`. One that ends at or before its beginning ends on
    /// the next day.
    ///
    /// # Errors
    /// Which one cannot be read, and what would be right.
    pub fn read(texts: &[impl AsRef<str>]) -> Result<Self, String> {
        let mut windows = Vec::new();
        for text in texts.iter().map(AsRef::as_ref) {
            let read = read(text).ok_or_else(|| {
                format!(
                    "\"{}\" is not like \"Sat 22:00-04:00\" or \"daily 01:30-05:00\"",
                    text.escape_debug()
                )
            })?;
            windows.extend(read);
        }
        Ok(Self(windows))
    }

    /// When the next one opens; none while one is open, or when there are none: then it is always open.
    pub fn next_opening(&self, now: Time) -> Option<Time> {
        let at = now.date_time();
        let day = u32::from(at.weekday().number_days_from_monday());
        let minute = day * DAY + u32::from(at.hour()) * HOUR + u32::from(at.minute());
        let into = |window: &Window| (minute + WEEK - window.from) % WEEK;
        if self.0.iter().any(|window| into(window) < window.minutes) {
            return None;
        }
        let wait = self.0.iter().map(|window| WEEK - into(window)).min()?;
        let since_minute =
            Duration::from_secs(u64::from(at.second())) + Duration::from_nanos(u64::from(at.nanosecond()));
        Some(now + Duration::from_secs(u64::from(wait) * 60) - since_minute)
    }
}

fn read(text: &str) -> Option<Vec<Window>> {
    let (day, span) = text.split_once(' ')?;
    let (from, to) = span.split_once('-')?;
    let (from, to) = (minute(from)?, minute(to)?);
    let minutes = match (to + DAY - from) % DAY {
        0 => DAY,
        minutes => minutes,
    };
    let on = |day: usize| Window {
        from: day as u32 * DAY + from,
        minutes,
    };
    match DAYS.iter().position(|known| known.eq_ignore_ascii_case(day)) {
        Some(day) => Some(vec![on(day)]),
        None if day.eq_ignore_ascii_case("daily") => Some((0..7).map(on).collect()),
        None => None,
    }
}

fn minute(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let two = |text: &str, below: u32| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u32>().ok().filter(|number| digits && *number < below)
    };
    Some(two(hour, 24)? * HOUR + two(minute, 60)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_opening_is_that_of_the_window_that_opens_first_and_none_while_one_is_open() {
        let read = |texts: &[&str]| Windows::read(texts).unwrap();
        // 2026-11-28 was a Saturday.
        for (windows, now, opens) in [
            (
                &["Sat 22:00-04:00"][..],
                "2026-11-28T21:59:59.5Z",
                Some("2026-11-28T22:00:00Z"),
            ),
            (&["Sat 22:00-04:00"], "2026-11-28T22:00:00Z", None),
            (&["Sat 22:00-04:00"], "2026-11-29T03:59:59Z", None),
            (
                &["Sat 22:00-04:00"],
                "2026-11-29T04:00:00Z",
                Some("2026-12-05T22:00:00Z"),
            ),
            (&["Sun 22:00-04:00"], "2026-11-30T03:00:00Z", None),
            (
                &["Sun 22:00-04:00", "Wed 10:00-11:00"],
                "2026-11-30T04:00:00Z",
                Some("2026-12-02T10:00:00Z"),
            ),
            (
                &["daily 01:30-05:00"],
                "2026-11-28T05:00:00Z",
                Some("2026-11-29T01:30:00Z"),
            ),
            (&["daily 00:00-00:00"], "2026-11-28T05:00:00Z", None),
            (
                &["sun 00:00-00:00"],
                "2026-11-28T05:00:00Z",
                Some("2026-11-29T00:00:00Z"),
            ),
            (&[], "2026-11-28T05:00:00Z", None),
        ] {
            let now: Time = now.parse().unwrap();
            let opens = opens.map(|at| at.parse::<Time>().unwrap());
            assert_eq!(read(windows).next_opening(now), opens, "{windows:?} at {now}");
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for wrong in [
            "",
            "Sat",
            "Sat 22:00",
            "Sat 22-04",
            "Sat 24:00-01:00",
            "Sat 1:00-02:00",
            "Someday 01:00-02:00",
            "Sat 01:60-02:00",
        ] {
            let why = Windows::read(&[wrong]).unwrap_err();
            assert!(why.contains("is not like"), "{why}");
        }
    }
}
