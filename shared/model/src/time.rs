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
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// An instant in UTC with microsecond resolution, which is what Postgres keeps. RFC 3339 on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(OffsetDateTime);

impl Time {
    /// From a date and time, cut to microseconds.
    pub fn new(at: OffsetDateTime) -> Self {
        let at = at.to_offset(UtcOffset::UTC);
        Self(
            at.replace_nanosecond(at.nanosecond() / 1_000 * 1_000)
                .expect("fewer nanoseconds than a second has"),
        )
    }

    /// From whole seconds since 1970; clamped to the years 0 to 9999.
    pub fn from_unix(seconds: i64) -> Self {
        Self(OffsetDateTime::from_unix_timestamp(seconds.clamp(-62_135_596_800, 253_402_300_799)).expect("clamped"))
    }

    fn from_micros(micros: i64) -> Self {
        let at = OffsetDateTime::from_unix_timestamp(micros.div_euclid(1_000_000));
        let at = at.and_then(|at| at.replace_microsecond(micros.rem_euclid(1_000_000) as u32));
        Self(at.expect("read from a valid time"))
    }

    /// Whole seconds since 1970.
    pub fn unix(self) -> i64 {
        self.0.unix_timestamp()
    }

    /// Milliseconds since 1970; zero before.
    pub fn unix_millis(self) -> u64 {
        u64::try_from(self.0.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
    }

    /// The date and time.
    pub fn date_time(self) -> OffsetDateTime {
        self.0
    }

    /// The same instant without fractions of a second: dates in certificates have none.
    pub fn whole_seconds(self) -> Self {
        Self::from_unix(self.unix())
    }

    /// Seconds from `earlier` to this instant, negative when it lies before.
    pub fn seconds_since(self, earlier: Time) -> i64 {
        (self.0 - earlier.0).whole_seconds()
    }

    /// Time from `earlier` until this instant; zero when it lies before.
    pub fn since(self, earlier: Time) -> Duration {
        (self.0 - earlier.0).try_into().unwrap_or(Duration::ZERO)
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Time;

    fn add(self, by: Duration) -> Time {
        time::Duration::try_from(by)
            .ok()
            .and_then(|by| self.0.checked_add(by))
            .map_or(Self::from_unix(i64::MAX), Self)
    }
}

impl std::ops::Sub<Duration> for Time {
    type Output = Time;

    fn sub(self, by: Duration) -> Time {
        time::Duration::try_from(by)
            .ok()
            .and_then(|by| self.0.checked_sub(by))
            .map_or(Self::from_unix(i64::MIN), Self)
    }
}

/// Room for the longest text of an instant, 2027-01-15T08:00:00.123456789Z.
type Room = [u8; 40];

impl Time {
    /// RFC 3339, written where there is room: lists have hundreds of them.
    fn text(self, room: &mut Room) -> Option<&str> {
        let mut rest = &mut room[..];
        self.0.format_into(&mut rest, &Rfc3339).ok()?;
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
            <OffsetDateTime as Encode<Postgres>>::encode_by_ref(&self.0, buf)
        }
    }

    impl<'r> Decode<'r, Postgres> for Time {
        fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
            if value.format() == PgValueFormat::Text {
                return Ok(Time::new(<OffsetDateTime as Decode<Postgres>>::decode(value)?));
            }
            // Microseconds since 2000, read as such: lists have hundreds of them.
            const YEAR_2000: i64 = 946_684_800;
            let micros = <i64 as Decode<Postgres>>::decode(value)?;
            let at = OffsetDateTime::from_unix_timestamp(YEAR_2000 + micros.div_euclid(1_000_000))?;
            Ok(Time(at.replace_microsecond(micros.rem_euclid(1_000_000) as u32)?))
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
        let at_base = Arc::new(AtomicI64::new(micros(system_now())));
        Self(Source::Told {
            base: Instant::now(),
            at_base,
        })
    }

    /// A clock that stands still until it is moved. Clones move together.
    pub fn manual(start: Time) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(micros(start.0)))))
    }

    /// Reads the clock.
    pub fn now(&self) -> Time {
        match &self.0 {
            Source::System => Time::new(system_now()),
            Source::Told { base, at_base } => {
                Time::from_micros(at_base.load(Ordering::SeqCst).saturating_add(elapsed(*base)))
            }
            Source::Manual(at) => Time::from_micros(at.load(Ordering::SeqCst)),
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
        let ahead = micros(self.now().0) - micros(said.0);
        if (-CLOSE..=elapsed(asked) + CLOSE).contains(&ahead) {
            return None;
        }
        at_base.store(micros(said.0) - elapsed(*base), Ordering::SeqCst);
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
        at.store(micros((self.now() + by).0), Ordering::SeqCst);
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

fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000).expect("years 0 to 9999 fit")
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
