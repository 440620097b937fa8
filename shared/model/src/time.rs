//! The instant, as it is written, stored and asked for.

use std::{
    borrow::Cow,
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// An instant in UTC with microsecond resolution, which is what Postgres keeps; up to the year 9999. RFC 3339 on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(
    /// Microseconds since 1970: instants are compared and moved far more often than they are written.
    i64,
);

/// The first second of the year 1 and the last one of 9999, since 1970.
const YEARS: (i64, i64) = (-62_135_596_800, 253_402_300_799);
const SECOND: i64 = 1_000_000;

impl Time {
    /// From a date and time, cut to microseconds.
    pub fn new(at: OffsetDateTime) -> Self {
        Self(at.unix_timestamp() * SECOND + i64::from(at.microsecond()))
    }

    /// From whole seconds since 1970; clamped to the years 1 to 9999.
    pub fn from_unix(seconds: i64) -> Self {
        Self(seconds.clamp(YEARS.0, YEARS.1) * SECOND)
    }

    /// From microseconds since 1970; clamped as well.
    fn from_micros(micros: i128) -> Self {
        let (first, last) = (i128::from(YEARS.0 * SECOND), i128::from((YEARS.1 + 1) * SECOND - 1));
        Self(micros.clamp(first, last) as i64)
    }

    /// Whole seconds since 1970.
    pub fn unix(self) -> i64 {
        self.0.div_euclid(SECOND)
    }

    /// Milliseconds since 1970; zero before.
    pub fn unix_millis(self) -> u64 {
        u64::try_from(self.0 / 1_000).unwrap_or(0)
    }

    /// The date and time.
    pub fn date_time(self) -> OffsetDateTime {
        let at = OffsetDateTime::from_unix_timestamp(self.unix());
        let at = at.and_then(|at| at.replace_microsecond(self.0.rem_euclid(SECOND) as u32));
        at.expect("no instant is beyond the year 9999")
    }

    /// The same instant without fractions of a second: dates in certificates have none.
    pub fn whole_seconds(self) -> Self {
        Self::from_unix(self.unix())
    }

    /// Whole seconds from `earlier` until this instant, negative when it lies before.
    pub fn seconds_since(self, earlier: Time) -> i64 {
        (self.0 - earlier.0) / SECOND
    }

    /// Time from `earlier` until this instant; zero when it lies before.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Time;

    fn add(self, by: Duration) -> Time {
        Self::from_micros(i128::from(self.0) + by.as_micros() as i128)
    }
}

impl std::ops::Sub<Duration> for Time {
    type Output = Time;

    fn sub(self, by: Duration) -> Time {
        Self::from_micros(i128::from(self.0) - by.as_micros() as i128)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Room for the longest text of an instant, 2027-01-15T08:00:00.123456789Z.
type Room = [u8; 40];

impl Time {
    /// RFC 3339, written where there is room: lists have hundreds of them.
    fn text(self, room: &mut Room) -> Option<&str> {
        let mut rest = &mut room[..];
        self.date_time().format_into(&mut rest, &Rfc3339).ok()?;
        let unused = rest.len();
        str::from_utf8(&room[..room.len() - unused]).ok()
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text(&mut [0; 40]).ok_or(fmt::Error)?)
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        OffsetDateTime::parse(text, &Rfc3339)
            .map(Self::new)
            .map_err(|_| "an RFC 3339 time is needed, like 2026-11-23T12:00:00Z".to_owned())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut room = [0; 40];
        s.serialize_str(
            self.text(&mut room)
                .ok_or_else(|| serde::ser::Error::custom("a year beyond 9999"))?,
        )
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "examples": ["2026-11-23T12:07:06.549528Z"] })
    }
}

#[cfg(feature = "sqlx")]
mod sql {
    use sqlx::{Decode, Encode, Postgres, Type, encode::IsNull, error::BoxDynError, postgres::*};
    use time::OffsetDateTime;

    use super::Time;

    /// Whence Postgres counts, in microseconds since 1970.
    const YEAR_2000: i64 = 946_684_800 * super::SECOND;

    impl Type<Postgres> for Time {
        fn type_info() -> PgTypeInfo {
            <OffsetDateTime as Type<Postgres>>::type_info()
        }
    }

    impl PgHasArrayType for Time {
        fn array_type_info() -> PgTypeInfo {
            <OffsetDateTime as PgHasArrayType>::array_type_info()
        }
    }

    impl<'q> Encode<'q, Postgres> for Time {
        fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
            <i64 as Encode<Postgres>>::encode(self.0 - YEAR_2000, buf)
        }
    }

    impl<'r> Decode<'r, Postgres> for Time {
        fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
            if value.format() == PgValueFormat::Text {
                return Ok(Time::new(<OffsetDateTime as Decode<Postgres>>::decode(value)?));
            }
            // Microseconds since 2000, read as such: lists have hundreds of them.
            let micros = i128::from(<i64 as Decode<Postgres>>::decode(value)?) + i128::from(YEAR_2000);
            let at = Time::from_micros(micros);
            match i128::from(at.0) == micros {
                true => Ok(at),
                false => Err("an instant before the year 1 or beyond 9999".into()),
            }
        }
    }
}

/// Says what time it is: the system's, one that others keep, or one that a test sets. Clones are one clock.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    /// Counts on from `base` by itself; what it read then is in microseconds since 1970.
    Told {
        base: Instant,
        at_base: Arc<AtomicI64>,
    },
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The time of day of this machine.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that goes by what it is [told](Self::tell), so that replicas with one source have one time whatever their
    /// machines say. Until then it goes by the machine.
    pub fn told() -> Self {
        let at_base = Arc::new(AtomicI64::new(Time::new(system_now()).0));
        Self(Source::Told {
            base: Instant::now(),
            at_base,
        })
    }

    /// A clock that stands still until it is moved. Clones move together.
    pub fn manual(start: Time) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(start.0))))
    }

    /// Reads the clock.
    pub fn now(&self) -> Time {
        match &self.0 {
            Source::System => Time::new(system_now()),
            Source::Told { base, at_base } => Time(at_base.load(Ordering::SeqCst).saturating_add(elapsed(*base))),
            Source::Manual(at) => Time(at.load(Ordering::SeqCst)),
        }
    }

    /// Tells what time it was between `asked` and now. A clock that agrees is left alone, so that it does not jump back
    /// and forth; the system's and a manual one do not listen. Returns by how many seconds it was ahead, if it was set.
    pub fn tell(&self, said: Time, asked: Instant) -> Option<f64> {
        /// In microseconds; nobody has to be right to less.
        const CLOSE: i64 = 1_000;
        let Source::Told { base, at_base } = &self.0 else {
            return None;
        };
        let ahead = self.now().0 - said.0;
        if (-CLOSE..=elapsed(asked) + CLOSE).contains(&ahead) {
            return None;
        }
        at_base.store(said.0 - elapsed(*base), Ordering::SeqCst);
        Some(ahead as f64 / 1e6)
    }

    /// Moves a manual clock forward.
    ///
    /// # Panics
    /// On any other.
    pub fn advance(&self, by: Duration) {
        let Source::Manual(at) = &self.0 else {
            panic!("only a manual clock can be moved");
        };
        at.store((self.now() + by).0, Ordering::SeqCst);
    }
}

fn elapsed(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_micros()).unwrap_or(i64::MAX)
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the time of day"
)]
fn system_now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_and_read_in_any_offset() {
        for (text, written) in [
            ("2026-11-23T12:07:06.549528Z", "2026-11-23T12:07:06.549528Z"),
            ("2026-11-23T13:07:06+01:00", "2026-11-23T12:07:06Z"),
            ("2026-11-23T12:07:06.123456789Z", "2026-11-23T12:07:06.123456Z"),
        ] {
            assert_eq!(text.parse::<Time>().unwrap().to_string(), written);
        }
        assert!("yesterday".parse::<Time>().is_err());
    }

    #[test]
    fn instants_are_moved_and_told_apart_to_the_microsecond_and_end_with_the_calendar() {
        let at = |text: &str| text.parse::<Time>().unwrap();
        let before = at("1969-12-31T23:59:58.25Z");
        assert_eq!((before.unix(), before.unix_millis()), (-2, 0));
        assert_eq!(before.whole_seconds(), at("1969-12-31T23:59:58Z"));
        assert_eq!(
            before + Duration::from_micros(1_750_001),
            at("1970-01-01T00:00:00.000001Z")
        );
        assert_eq!(at("1970-01-01T00:00:00.5Z").seconds_since(before), 2);
        assert_eq!(before.seconds_since(at("1970-01-01T00:00:00Z")), -1);
        assert_eq!(before.since(Time::from_unix(0)), Duration::ZERO);
        let last = Time::from_unix(i64::MAX);
        assert_eq!(last.to_string(), "9999-12-31T23:59:59Z");
        assert_eq!((last + Duration::MAX).to_string(), "9999-12-31T23:59:59.999999Z");
        assert_eq!((last - Duration::MAX).to_string(), "0001-01-01T00:00:00Z");
    }

    #[test]
    fn a_clock_that_is_told_the_time_goes_by_it_and_not_by_the_machine() {
        let (clock, hour) = (Clock::told(), Duration::from_secs(3_600));
        let (machine, asked) = (Clock::system(), Instant::now());
        let ahead = clock.clone().tell(machine.now() - hour, asked);
        assert!(
            ahead.is_some_and(|ahead| (3_599.0..3_700.0).contains(&ahead)),
            "{ahead:?}"
        );
        let behind = machine.now().seconds_since(clock.now());
        assert!((3_599..3_700).contains(&behind), "{behind}");
        // What was said on the way here is no news.
        let (asked, before) = (Instant::now(), clock.now());
        assert_eq!(clock.tell(before, asked), None);

        let manual = Clock::manual(Time::from_unix(100));
        manual.tell(Time::from_unix(5), Instant::now());
        assert_eq!(manual.now(), Time::from_unix(100));
    }

    #[test]
    fn clones_of_a_manual_clock_move_together() {
        let clock = Clock::manual(Time::from_unix(100));
        clock.clone().advance(Duration::from_secs(5));
        assert_eq!(clock.now(), Time::from_unix(105));
    }
}
