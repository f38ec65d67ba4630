//! A moment in calendar terms, and Python's `strftime` for it.

use std::fmt::Write;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const SECONDS_PER_DAY: i64 = 86_400;

/// A moment of the proleptic Gregorian calendar, without a time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CivilTime {
    /// Seconds since 1970-01-01T00:00:00.
    seconds: i64,
}

/// Fields of a [`CivilTime`].
struct Fields {
    year: i64,
    /// 1..=12
    month: usize,
    /// 1..=31
    day: i64,
    /// 0..=365
    day_of_year: i64,
    /// 0 is Sunday.
    weekday: usize,
    /// Seconds since midnight.
    second_of_day: i64,
}

impl CivilTime {
    /// From seconds since 1970-01-01T00:00:00; clamped to the years 1..=9999.
    pub fn from_unix(seconds: i64) -> Self {
        let first = days_from_civil(1, 1, 1) * SECONDS_PER_DAY;
        let last = days_from_civil(10_000, 1, 1) * SECONDS_PER_DAY - 1;
        Self { seconds: seconds.clamp(first, last) }
    }

    /// From a date `[year, month, day]` and a time of day `[hour, minute, second]`; `None` where
    /// a field is out of its range.
    pub fn new([year, month, day]: [u32; 3], [hour, minute, second]: [u32; 3]) -> Option<Self> {
        let in_range = (1..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        let days = days_from_civil(year.into(), month.into(), day.into());
        let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
        let time = Self { seconds: days * SECONDS_PER_DAY + seconds };
        // the 31st of a short month comes back as another day
        (in_range && time.fields().day == i64::from(day)).then_some(time)
    }

    /// Now, in UTC.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self::from_unix(since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)))
    }

    /// Python's `datetime.strftime` in the C locale for the directives that templates use,
    /// glibc's `-` (no padding) included. A directive that is not known stays as it is.
    pub fn strftime(&self, format: &str) -> String {
        let fields = self.fields();
        let mut out = String::with_capacity(format.len() + 16);
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let before = rest.as_str();
            let mut directive = rest.next();
            let padded = directive != Some('-');
            if !padded {
                directive = rest.next();
            }
            if directive.is_none_or(|directive| !fields.write(&mut out, directive, padded)) {
                out.push('%');
                rest = before.chars();
            }
        }
        out
    }

    fn fields(&self) -> Fields {
        let days = self.seconds.div_euclid(SECONDS_PER_DAY);
        let mut year = 1970 + days.div_euclid(366);
        while days_from_civil(year + 1, 1, 1) <= days {
            year += 1;
        }
        let day_of_year = days - days_from_civil(year, 1, 1);
        let month = (2..=12).take_while(|&month| days_from_civil(year, month, 1) <= days).count();
        let month_start = days_from_civil(year, month as i64 + 1, 1);
        Fields {
            year,
            month: month + 1,
            day: days - month_start + 1,
            day_of_year,
            weekday: (days + 4).rem_euclid(7) as usize,
            second_of_day: self.seconds.rem_euclid(SECONDS_PER_DAY),
        }
    }
}

impl Fields {
    /// Writes one directive; `false` where it is not known.
    fn write(&self, out: &mut String, directive: char, padded: bool) -> bool {
        let hour = self.second_of_day / 3600;
        let hour_12 = (hour + 11) % 12 + 1;
        let (month, day) = (self.month as i64, self.day);
        let minute = self.second_of_day / 60 % 60;
        let second = self.second_of_day % 60;
        let number = |value: i64, width: usize| match padded {
            true => format!("{value:0width$}"),
            false => value.to_string(),
        };
        let text = match directive {
            'Y' => number(self.year, 4),
            'y' => number(self.year % 100, 2),
            'm' => number(month, 2),
            'd' => number(day, 2),
            'e' if padded => format!("{day:2}"),
            'e' => day.to_string(),
            'H' => number(hour, 2),
            'I' => number(hour_12, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'j' => number(self.day_of_year + 1, 3),
            'f' => "000000".to_owned(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'B' => MONTHS[self.month - 1].to_owned(),
            'b' | 'h' => MONTHS[self.month - 1][..3].to_owned(),
            'A' => DAYS[self.weekday].to_owned(),
            'a' => DAYS[self.weekday][..3].to_owned(),
            'w' => self.weekday.to_string(),
            'u' => ((self.weekday + 6) % 7 + 1).to_string(),
            'F' => format!("{:04}-{month:02}-{day:02}", self.year),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' => format!("{month:02}/{day:02}/{:02}", self.year % 100),
            'z' | 'Z' => String::new(), // a datetime without a zone
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return false,
        };
        out.write_str(&text).is_ok()
    }
}

/// Days from 1970-01-01 to the given date: 365 a year, a leap day for every finished year
/// divisible by 4 but not by 100 unless by 400.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    const BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let finished = year - 1;
    let leap_days = finished.div_euclid(4) - finished.div_euclid(100) + finished.div_euclid(400);
    let index = usize::try_from(month - 1).unwrap_or(0).min(11);
    let days_since_year_1 = finished * 365 + leap_days + BEFORE_MONTH[index] + day - 1;
    const YEAR_1_TO_1970: i64 = 719_162;
    days_since_year_1 + i64::from(leap && month > 2) - YEAR_1_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts come from CPython.
    #[test]
    fn formats_follow_python() {
        let time = CivilTime::new([2026, 2, 3], [14, 5, 9]).expect("a date");
        for (format, text) in [
            ("%Y-%m-%d", "2026-02-03"),
            ("%d %b %Y", "03 Feb 2026"),
            ("%B %d, %Y", "February 03, 2026"),
            ("%A %a %-d %e %j", "Tuesday Tue 3  3 034"),
            ("%H:%M:%S %I%p %y %%", "14:05:09 02PM 26 %"),
            ("%F %T %-m/%-I", "2026-02-03 14:05:09 2/2"),
            ("ü%Q%", "ü%Q%"),
        ] {
            assert_eq!(time.strftime(format), text);
        }
    }

    #[test]
    fn calendar_counts_leap_days() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 Thu 001"),
            (951_782_400, "2000-02-29 00:00:00 Tue 060"),
            (4_107_542_399, "2100-02-28 23:59:59 Sun 059"),
            (4_107_542_400, "2100-03-01 00:00:00 Mon 060"),
            (1_735_689_599, "2024-12-31 23:59:59 Tue 366"),
            (-1, "1969-12-31 23:59:59 Wed 365"),
        ] {
            assert_eq!(CivilTime::from_unix(seconds).strftime("%F %T %a %j"), text);
        }
        assert_eq!(CivilTime::from_unix(i64::MAX).strftime("%Y"), "9999");
        assert_eq!(CivilTime::new([2025, 2, 29], [0, 0, 0]), None);
        assert_eq!(CivilTime::new([2025, 13, 1], [0, 0, 0]), None);
    }
}
